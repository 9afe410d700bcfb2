// On a narrow screen a figure takes the whole width, where that leaves 0.78 pixels for a point of its text; else it gets
// 0.9 (0.45 of the width of a file of pixels), and scrolls sideways in a box of its own, which Tab reaches as well.
addEventListener("load", () => {
  const narrow = matchMedia("screen and (max-width: 576px)");
  const drawings = document.querySelectorAll(".bd-article :is(.cell_output, .cell_output > figure) > :is(img, svg.drawn)");
  const boxes = [...drawings].map(drawing => {
    const box = document.createElement("div");
    drawing.replaceWith(box);
    box.append(drawing);
    return box;
  });
  const legible = drawing => drawing.viewBox ? 0.9 * drawing.viewBox.baseVal.width
    : 0.45 * (drawing.naturalWidth || Number(drawing.getAttribute("width")));
  const fit = () => {
    for (const box of boxes) {
      box.classList.toggle("phone-figure", narrow.matches);
      const drawing = box.firstChild, width = legible(drawing), wide = narrow.matches && width > 1.17 * box.clientWidth;
      drawing.style.width = wide ? `${width}px` : narrow.matches ? "100%" : "";
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Figure, scrolls sideways"]])
        wide ? box.setAttribute(name, value) : box.removeAttribute(name);
    }
  };
  addEventListener("resize", fit);
  fit();
});
