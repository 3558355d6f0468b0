// Play the recording from a place in the timeline, by mouse and by keys, and show where it is;
// search with points of the map.
(() => {
  const player = () => document.querySelector(".eat-player audio");
  const show = () => {
    const audio = player();
    for (const slider of document.querySelectorAll(".eat-seek")) {
      const seconds = Math.min(audio.currentTime, slider.ariaValueMax);
      slider.ariaValueNow = seconds.toFixed(3);
      slider.ariaValueText = `${seconds.toFixed(1)} s`;
      slider.firstElementChild.style.left = `${(100 * seconds) / slider.ariaValueMax}%`;
    }
  };
  const seek = (seconds) => {
    player().currentTime = Math.max(0, seconds);
    show();
  };
  const play = (seconds) => {
    seek(seconds);
    player().play();
  };
  // Search with a row of the embedded folder, or play it once more.
  const search = (row) => {
    const input = document.querySelector("#eat-row :is(input, textarea)");
    if (input.value === row) return document.querySelector(".eat-query audio")?.play();
    input.value = row;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("eat-point", (event) => search(event.detail.row));
  document.addEventListener("click", (event) => {
    const similar = event.target.closest("[data-similar]");
    if (similar) search(similar.dataset.similar);
    const slider = event.target.closest(".eat-seek");
    const button = event.target.closest("[data-play]");
    if (button) play(Number(button.dataset.play));
    if (!slider) return;
    const box = slider.getBoundingClientRect();
    play(((event.clientX - box.left) / box.width) * slider.ariaValueMax);
  });
  document.addEventListener("keydown", (event) => {
    const slider = event.target.closest?.(".eat-seek");
    if (!slider) return;
    const audio = player();
    const step = Math.max(0.16, slider.ariaValueMax / 50);
    const keys = {
      ArrowLeft: () => seek(audio.currentTime - step),
      ArrowDown: () => seek(audio.currentTime - step),
      ArrowRight: () => seek(audio.currentTime + step),
      ArrowUp: () => seek(audio.currentTime + step),
      Home: () => seek(0),
      End: () => seek(Number(slider.ariaValueMax)),
      Enter: () => (audio.paused ? audio.play() : audio.pause()),
      " ": () => (audio.paused ? audio.play() : audio.pause()),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  // media events do not bubble
  document.addEventListener("timeupdate", show, true);
  document.addEventListener(
    "play",
    (event) => {
      for (const audio of document.querySelectorAll("audio")) {
        if (audio !== event.target) audio.pause();
      }
    },
    true,
  );
})();
