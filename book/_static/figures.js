// On a narrow screen a figure takes the whole width, and at least 0.45 of the width of its file: there a point of its
// text is 0.9 pixels. What is then too wide scrolls sideways in a box of its own, which Tab reaches as well.
addEventListener("load", () => {
  const narrow = matchMedia("screen and (max-width: 576px)");
  const boxes = [...document.querySelectorAll(".bd-article .cell_output > img")].map(image => {
    const box = document.createElement("div");
    image.replaceWith(box);
    box.append(image);
    return box;
  });
  const fit = () => {
    for (const box of boxes) {
      box.classList.toggle("phone-figure", narrow.matches);
      const image = box.firstChild, file = image.naturalWidth || Number(image.getAttribute("width"));
      const width = 0.45 * file, wide = narrow.matches && width > box.clientWidth;
      image.style.width = wide ? `${width}px` : narrow.matches ? "100%" : "";
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Figure, scrolls sideways"]])
        wide ? box.setAttribute(name, value) : box.removeAttribute(name);
    }
  };
  addEventListener("resize", fit);
  fit();
});
