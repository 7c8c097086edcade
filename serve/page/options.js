// The options of a question that is answered by a letter.
import { el, say } from './dom.js'

const MOST = 16
const LETTERS = 'ABCDEFGHIJKLMNOP'

export class Options {
  constructor(list, add) {
    Object.assign(this, { list, add })
    add.addEventListener('click', () => {
      this.fill([...this.#all(), ''])
      this.list.lastElementChild.querySelector('input').focus()
    })
    this.fill(['', ''])
  }

  /** The options that hold some text, in order. */
  values() {
    return this.#all().map((text) => text.trim()).filter(Boolean)
  }

  fill(texts) {
    const shown = texts.length ? texts : ['', '']
    this.list.replaceChildren(...shown.map((text, index) => this.#row(text, index, shown.length)))
    this.add.disabled = shown.length >= MOST
  }

  #all() {
    return [...this.list.querySelectorAll('input')].map((input) => input.value)
  }

  #row(text, index, count) {
    const letter = LETTERS[index]
    const input = el('input', { type: 'text', 'aria-label': `Option ${letter}` })
    input.value = text
    const remove = () => {
      this.fill(this.#all().filter((_, other) => other !== index))
      say(`Option ${letter} removed.`)
      this.list.children[Math.min(index, count - 2)].querySelector('input').focus()
    }
    const label = `Remove option ${letter}`
    return el('li', {}, el('span', { 'aria-hidden': 'true' }, letter), input,
      el('button', { type: 'button', class: 'small', 'aria-label': label, title: label, disabled: count < 3, onclick: remove }, '×'))
  }
}
