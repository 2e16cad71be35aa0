// One line of text. A template would read braces in a file's name as code; this shows them.

const line = element.querySelector(".words");
const follow = () => { line.textContent = props.value ?? ""; };
watch("value", follow);
follow();
