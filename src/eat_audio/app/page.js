// Play the recording from a place in the timeline, by mouse and by keys, and show where it is.
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
  document.addEventListener("click", (event) => {
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
})();
