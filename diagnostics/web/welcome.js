// What an empty chat shows: the model, and examples to click. Provided by the page: TEXTS, element, props (value), trigger,
// watch.

const pane = element.querySelector(".welcome");

function follow() {
  const { language, model, examples } = JSON.parse(props.value);
  const t = (key) => TEXTS[language][key];
  const cards = examples.map(({ picture, questions }, number) => {
    const card = make("button", { type: "button", className: "card" },
      make("img", { src: picture, alt: "" }), make("span", { textContent: questions[language] }));
    card.addEventListener("click", () => trigger("click", { number }));
    return card;
  });
  pane.replaceChildren(
    make("h2", { textContent: t("welcome") }),
    make("p", { className: "model", textContent: model[language] }),
    make("p", { className: "hint", textContent: t("try_one") }),
    make("div", { className: "cards" }, ...cards));
}

watch("value", follow);
follow();
