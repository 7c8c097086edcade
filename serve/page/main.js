// The page: the form, the asking, and what is shown meanwhile.
import { ask, facts, Problem } from './ask.js'
import { byId, el, say } from './dom.js'
import { showExamples } from './examples.js'
import { ImageList } from './images.js'
import { matchOf, matchWords } from './match.js'
import { Options } from './options.js'
import { resultOf } from './result.js'
import { FORMS, answerWords } from './words.js'

const RETRY_MS = 3000
const SHOWN_CHARS = 4000
const VOTING_TEMPERATURE = 0.8

const form = byId('ask')
const options = new Options(byId('option-list'), byId('add-option'))
const images = new ImageList(byId('thumbs'), byId('drop'), (text) => {
  example = null
  imagesNote(text)
})
let example = null
let running = null
let matches = false
let shown = []

function imagesNote(text) {
  byId('images-note').textContent = text || `Up to ${images.most}, in the order in which they were taken.`
}

const chosenForm = () => form.elements.form.value

function formChanged() {
  byId('form-note').textContent = FORMS[chosenForm()]
  byId('options').hidden = chosenForm() !== 'letter'
}

/** The request as the form has it; throws Problem when it cannot be sent. */
async function request() {
  if (!images.items.length) throw new Problem({ what: 'There is no photo yet', what_to_do: 'choose or drop at least one', where: 'images' })
  const number = (id) => (byId(id).value === '' ? null : Number(byId(id).value))
  const drawn = { temperature: number('temperature') ?? 0, seed: number('seed') }
  if (matches) return { images: await images.encoded(), ...drawn }
  const question = byId('question').value.trim()
  if (!question) throw new Problem({ what: 'The question is empty', what_to_do: 'write what you want to know', where: 'question' })
  return {
    images: await images.encoded(),
    question,
    answer_form: chosenForm(),
    options: chosenForm() === 'letter' ? options.values() : [],
    samples: number('samples') ?? 1,
    ...drawn,
    constrained: byId('constrained').checked,
  }
}

function show(id) {
  for (const part of ['intro', 'progress', 'problem', 'reply']) byId(part).hidden = part !== id
  if (id === 'progress' || id === 'problem') byId(id).scrollIntoView({ block: 'nearest' })
}

function progress(samples) {
  const start = performance.now()
  const texts = []
  byId('growing').textContent = ''
  byId('stage').textContent = 'Asking'
  const tick = () => { byId('elapsed').textContent = `${((performance.now() - start) / 1000).toFixed(1)} s` }
  tick()
  const timer = setInterval(tick, 100)
  const onText = (text, sample) => {
    if (!texts.length) say('The model is writing.')
    texts[sample] = (texts[sample] ?? '') + text
    byId('stage').textContent = samples > 1 ? `Writing ${texts.filter(Boolean).length} of ${samples} samples` : 'Writing'
    byId('growing').textContent = (texts[0] ?? '').slice(-SHOWN_CHARS)
  }
  return { onText, stop: () => clearInterval(timer) }
}

async function send(event) {
  event.preventDefault()
  if (running) return
  running = new AbortController()
  images.mark(null)
  busy(true)
  show('progress')
  say('Asking.')
  const written = progress(Number(byId('samples').value))
  try {
    const body = await request()
    const asked = { body, example, files: images.items.map(({ file, name }) => ({ file, name })) }
    const reply = await ask(matches ? 'match' : 'reason', body, { signal: running.signal, key: byId('key').value, onText: written.onText })
    await answered(reply, asked)
  } catch (error) {
    if (error.name === 'AbortError') cancelled()
    else failed(error)
  } finally {
    written.stop()
    running = null
    busy(false)
  }
}

/** Ask gives way to Cancel and comes back; the focus goes with it. */
function busy(now) {
  const [gone, there] = now ? ['send', 'cancel'] : ['cancel', 'send']
  const focused = document.activeElement === byId(gone)
  byId(there).hidden = false
  if (focused) byId(there).focus()
  byId(gone).hidden = true
}

async function answered(reply, { body, example, files }) {
  shown.forEach(({ url }) => URL.revokeObjectURL(url))
  // Addresses of their own: the photos of the form may be taken away while the answer is looked at.
  shown = files.map(({ file, name }) => ({ name, url: URL.createObjectURL(file) }))
  const parts = matches ? matchOf(reply, shown) : resultOf(reply, { body, example, images: shown })
  byId('reply').replaceChildren(...await parts)
  show('reply')
  const { large, below } = matches ? matchWords(reply) : answerWords(reply, body.answer_form, body.options)
  say(`Answer: ${large}. ${below}`)
  byId('version').textContent = `Model ${reply.model_version}`
  const result = byId('result')
  result.focus({ preventScroll: true })
  const { top } = result.getBoundingClientRect()
  if (top < 0 || top > innerHeight / 2) result.scrollIntoView()
}

function cancelled() {
  show('intro')
  say('Cancelled.')
}

/** A refusal in words; the field that it names is marked, and has the focus where it can be fixed. */
function failed(error) {
  if (!(error instanceof Problem)) console.error(error)
  const { what, todo, where, code } = error instanceof Problem ? { ...error, what: error.message }
    : { what: `This page met an error of its own: ${error.message}`, todo: 'reload it and ask again', where: '', code: '' }
  const image = /^images\.(\d+)/.exec(where)
  if (image) images.mark(Number(image[1]))
  byId('problem').replaceChildren(
    el('h2', {}, sentence(image ? `Image ${image[1]}: ${what}` : what)),
    el('p', {}, sentence(code === 'bad_key' ? 'write the key of this service below More, then ask again' : todo)))
  show('problem')
  const field = code === 'bad_key' ? byId('key') : byId(where)
  if (!field || !form.contains(field)) return
  byId('more').open ||= byId('more').contains(field)
  field.focus()
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/\.?$/, '.')

function take(picked, files) {
  images.replace(files)
  byId('question').value = picked.question
  byId('constrained').checked = picked.constrained
  form.elements.form.value = picked.answer_form
  options.fill(picked.options)
  formChanged()
  example = picked
  byId('send').focus()
  say(`${picked.title} ${picked.question} ${files.length} photos. Press Enter to ask.`)
}

/** Ask the service about itself until it answers. */
async function greet() {
  try {
    const health = await facts()
    matches = health.matches
    document.body.classList.toggle('matching', matches)
    images.most = matches ? 2 : health.max_images
    imagesNote('')
    byId('service').textContent = 'Ready'
    byId('service').className = 'service ready'
    byId('version').textContent = `Model ${health.model_version}`
  } catch (error) {
    byId('service').textContent = `${sentence(error.message)} Trying again.`
    byId('service').className = 'service waiting'
    setTimeout(greet, RETRY_MS)
  }
}

form.addEventListener('submit', send)
form.addEventListener('change', (event) => { if (event.target.name === 'form') formChanged() })
byId('cancel').addEventListener('click', () => running?.abort())
byId('files').addEventListener('change', ({ target }) => {
  images.add([...target.files])
  target.value = ''
})
byId('samples').addEventListener('change', ({ target }) => {
  if (Number(target.value) > 1 && Number(byId('temperature').value) === 0) byId('temperature').value = VOTING_TEMPERATURE
})
byId('question').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit()
})
formChanged()
showExamples(take)
greet()
