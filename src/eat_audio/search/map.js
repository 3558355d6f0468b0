// Move in a map, choose its points and play them, by mouse, touch and keys.
(() => {
  const DEEPEST = 200; // times that a map can be enlarged
  const NEAR = 14; // pixels from a point at which a click still means it
  const maps = new WeakMap();
  const svgOf = (element) => element.closest?.(".eat-map")?.querySelector(".eat-plot > svg");

  const mapOf = (svg) => {
    if (!maps.has(svg)) {
      const points = [...svg.querySelectorAll("[data-row]")].map((element) => {
        const { e: x, f: y } = element.transform.baseVal[0].matrix;
        return { element, x, y, ...element.dataset };
      });
      const { width, height } = svg.viewBox.baseVal;
      const view = { x: 0, y: 0, width, height };
      maps.set(svg, { svg, points, width, height, view, chosen: null, drag: null });
    }
    return maps.get(svg);
  };
  const shown = (map) => map.points.filter((p) => !p.element.classList.contains("eat-dim"));

  const setView = (map, x, y, width) => {
    width = Math.min(map.width, Math.max(map.width / DEEPEST, width));
    const height = (width * map.height) / map.width;
    x = Math.min(map.width - width, Math.max(0, x));
    y = Math.min(map.height - height, Math.max(0, y));
    map.view = { x, y, width, height };
    map.svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    map.svg.style.setProperty("--zoom", width / map.width);
    map.svg.classList.toggle("eat-zoomed", width < map.width);
  };
  const center = ({ view }) => ({ x: view.x + view.width / 2, y: view.y + view.height / 2 });
  const zoom = (map, factor, at = map.chosen ?? center(map)) => {
    const { x, y, width } = map.view;
    if (!factor) return setView(map, 0, 0, map.width);
    factor = Math.min(map.width / width, Math.max(map.width / DEEPEST / width, factor));
    setView(map, at.x - (at.x - x) * factor, at.y - (at.y - y) * factor, width * factor);
  };
  const placeOf = (map, { clientX, clientY }) =>
    new DOMPoint(clientX, clientY).matrixTransform(map.svg.getScreenCTM().inverse());
  const unit = (map) => 1 / map.svg.getScreenCTM().a; // of the drawing, in a pixel
  const nearest = (points, place) => {
    const far = (p) => Math.hypot(p.x - place.x, p.y - place.y);
    return points.reduce((best, p) => (best && far(best) <= far(p) ? best : p), null);
  };
  const pointAt = (map, event) => {
    const place = placeOf(map, event);
    const point = nearest(shown(map), place);
    const pixels = point && Math.hypot(point.x - place.x, point.y - place.y) / unit(map);
    return pixels !== null && pixels <= NEAR ? point : null;
  };

  const describe = (map, point, problem) => {
    const all = map.svg.closest(".eat-map");
    const small = document.createElement("small");
    const group = all.querySelector(`.eat-groups [data-group="${point.group}"] span`);
    small.textContent = problem ?? group.textContent;
    all.querySelector(".eat-chosen").replaceChildren(point.name, small);
  };
  const choose = (map, point) => {
    if (!point) return;
    map.chosen = point;
    const ring = map.svg.querySelector(".eat-ring");
    ring.setAttribute("transform", `translate(${point.x} ${point.y})`);
    const { x, y, width, height } = map.view;
    if (point.x < x || point.y < y || point.x > x + width || point.y > y + height) {
      setView(map, point.x - width / 2, point.y - height / 2, width);
    }
    describe(map, point);
  };
  const soundOf = (map) => map.svg.closest(".eat-map").querySelector("audio");
  const play = async (map) => {
    const point = map.chosen;
    const audio = soundOf(map);
    if (!point) return;
    map.svg.dispatchEvent(new CustomEvent("eat-point", { bubbles: true, detail: point }));
    if (!point.sound) return;
    if (audio.getAttribute("src") === point.sound && !audio.paused) return audio.pause();
    audio.src = point.sound;
    try {
      await audio.play();
    } catch (error) {
      if (error.name === "AbortError" || map.chosen !== point) return; // another one plays
      describe(map, point, "Cannot be played: not there, or not of a kind that this browser plays.");
    }
  };
  const step = (map, dx, dy) => {
    const points = shown(map);
    const from = map.chosen;
    if (!from) return choose(map, nearest(points, center(map)));
    // how far along the arrow, and twice how far beside it
    const cost = (p) => {
      const along = (p.x - from.x) * dx + (p.y - from.y) * dy;
      const beside = Math.abs((p.x - from.x) * dy) + Math.abs((p.y - from.y) * dx);
      return along > 0 && beside <= along ? along + 2 * beside : Infinity;
    };
    const best = points.reduce((a, p) => (cost(p) < cost(a) ? p : a), from);
    if (best !== from) choose(map, best);
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".eat-map button");
    if (!button) return;
    const map = mapOf(svgOf(button));
    if (button.dataset.zoom) return zoom(map, Number(button.dataset.zoom));
    button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
    const pressed = [...button.closest(".eat-groups").querySelectorAll('[aria-pressed="true"]')];
    const groups = new Set(pressed.map((one) => one.dataset.group));
    for (const point of map.points) {
      point.element.classList.toggle("eat-dim", groups.size > 0 && !groups.has(point.group));
    }
  });
  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest?.(".eat-plot > svg");
    if (!svg || event.button) return;
    const map = mapOf(svg);
    svg.setPointerCapture(event.pointerId);
    map.drag = { x: event.clientX, y: event.clientY, view: map.view, moved: false };
  });
  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest?.(".eat-plot > svg");
    if (!svg) return;
    const map = mapOf(svg);
    if (!map.drag) return void (svg.style.cursor = pointAt(map, event) ? "pointer" : "");
    const right = event.clientX - map.drag.x;
    const down = event.clientY - map.drag.y;
    if (Math.hypot(right, down) > 4) map.drag.moved = true;
    if (!map.drag.moved) return;
    const { x, y, width } = map.drag.view;
    setView(map, x - right * unit(map), y - down * unit(map), width);
  });
  document.addEventListener("pointerup", (event) => {
    const svg = event.target.closest?.(".eat-plot > svg");
    const map = svg && mapOf(svg);
    if (!map?.drag) return;
    const point = map.drag.moved ? null : pointAt(map, event);
    map.drag = null;
    if (!point) return;
    choose(map, point);
    play(map);
  });
  document.addEventListener("pointercancel", (event) => {
    const svg = event.target.closest?.(".eat-plot > svg");
    if (svg) mapOf(svg).drag = null;
  });
  document.addEventListener(
    "wheel",
    (event) => {
      const svg = event.target.closest?.(".eat-plot > svg");
      if (!svg || !(event.ctrlKey || svg === document.activeElement)) return;
      event.preventDefault();
      zoom(mapOf(svg), Math.exp(event.deltaY / 400), placeOf(mapOf(svg), event));
    },
    { passive: false },
  );
  document.addEventListener("keydown", (event) => {
    const svg = event.target.closest?.(".eat-plot > svg");
    if (!svg || event.ctrlKey || event.metaKey || event.altKey) return;
    const map = mapOf(svg);
    const keys = {
      ArrowLeft: () => step(map, -1, 0),
      ArrowRight: () => step(map, 1, 0),
      ArrowUp: () => step(map, 0, -1),
      ArrowDown: () => step(map, 0, 1),
      Enter: () => play(map),
      " ": () => play(map),
      Escape: () => soundOf(map)?.pause(),
      "+": () => zoom(map, 0.5),
      "=": () => zoom(map, 0.5),
      "-": () => zoom(map, 2),
      0: () => zoom(map, 0),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
})();
