"use strict";

// Shows one picture of a sequence at a time, chosen by a slider. Without JavaScript all of them are visible.
document.querySelectorAll(".slides").forEach(slides => {
  const pictures = [...slides.querySelectorAll("[data-step]")], bar = slides.querySelector(".slider");
  const input = bar.querySelector("input"), output = bar.querySelector("output");
  const show = () => {
    const current = Number(input.value), label = `step ${pictures[current].dataset.step}`;
    pictures.forEach((picture, i) => { picture.hidden = i !== current; });
    output.textContent = `${label}, picture ${current + 1} of ${pictures.length}`;
    input.setAttribute("aria-valuetext", label);
  };
  input.addEventListener("input", show);
  bar.hidden = false;
  show();
});
