// The excerpts of search come from the text of a page, not from the buttons and the contents above it.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const textOf = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article.bd-article");
    return textOf(article ? `<div role="main">${article.innerHTML}</div>` : html, anchor);
  };
});
