// What a word of the glossary means, in a card beside the link to it: under the pointer, or with the focus. Escape puts
// the card away, and the pointer may move onto it. The texts are in glossary.js, which the build makes.
document.addEventListener("DOMContentLoaded", () => {
  const card = document.createElement("div");
  Object.assign(card, { className: "term-card", id: "term-card", role: "tooltip", hidden: true });
  let link = null, timer = 0;
  const hide = () => {
    clearTimeout(timer);
    card.hidden = true;
    link?.removeAttribute("aria-describedby");
    link = null;
  };
  const show = target => {
    clearTimeout(timer);
    if (link && link !== target) hide();
    link = target;
    const term = decodeURIComponent(target.hash.slice(1));
    card.textContent = window.GLOSSARY[term];
    card.hidden = false;
    target.setAttribute("aria-describedby", card.id);
    const at = target.getClientRects()[0], room = document.documentElement.clientWidth - card.offsetWidth - 8;
    card.style.left = `${scrollX + Math.max(8, Math.min(at.left, room))}px`;
    const below = at.bottom + card.offsetHeight + 8 < innerHeight || at.top < card.offsetHeight + 8;
    card.style.top = `${scrollY + (below ? at.bottom + 6 : at.top - card.offsetHeight - 6)}px`;
  };
  const later = (action, wait) => () => { clearTimeout(timer); timer = setTimeout(action, wait); };
  document.body.append(card);
  for (const target of document.querySelectorAll('.bd-article a[href*="#term-"]')) {
    if (!window.GLOSSARY?.[decodeURIComponent(target.hash.slice(1))]) continue;
    target.addEventListener("pointerenter", event => event.pointerType === "mouse" && later(() => show(target), 150)());
    target.addEventListener("pointerleave", later(hide, 250));
    target.addEventListener("focus", () => show(target));
    target.addEventListener("blur", hide);
  }
  card.addEventListener("pointerenter", () => clearTimeout(timer));
  card.addEventListener("pointerleave", later(hide, 250));
  addEventListener("keydown", event => event.key === "Escape" && hide());
});
