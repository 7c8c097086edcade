// The cameras in space, by three.js: frustums with the photos on their image planes, a ground grid, the path.
import * as THREE from './vendor/three.module.min.js'
import { OrbitControls } from './vendor/OrbitControls.js'
import { cameraColor } from './dom.js'
import { place, reach } from './poses.js'

const TURN = Math.PI / 24
const ZOOM = 1.15

export class CameraView {
  /** Raises an error when the browser has no WebGL 2. */
  constructor(canvas) {
    this.canvas = canvas
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true })
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2))
    this.scene = new THREE.Scene()
    this.camera = new THREE.PerspectiveCamera(45, 1, 0.01, 500)
    this.controls = new OrbitControls(this.camera, canvas)
    this.controls.addEventListener('change', () => this.draw())
    // The wheel scrolls the page until the view was chosen by a click or the Tab key.
    this.controls.enableZoom = false
    canvas.addEventListener('focus', () => { this.controls.enableZoom = true })
    canvas.addEventListener('blur', () => { this.controls.enableZoom = false })
    canvas.addEventListener('pointerdown', () => canvas.focus({ preventScroll: true }))
    this.world = new THREE.Group()
    this.world.rotation.x = Math.PI  // ours is y down, z forward; theirs y up, z backward
    this.scene.add(this.world)
    this.observer = new ResizeObserver(() => this.resize())
    this.observer.observe(canvas.parentElement)
    this.dark = matchMedia('(prefers-color-scheme: dark)')
    this.recolor = () => this.rebuild()
    this.dark.addEventListener('change', this.recolor)
  }

  dispose() {
    this.observer.disconnect()
    this.dark.removeEventListener('change', this.recolor)
    this.controls.dispose()
    this.#clear()
    this.renderer.dispose()
  }

  /**
   * cameras, detours, truth: [{index, matrix}]; images: a canvas or null for each index; fov: degrees.
   */
  async show({ cameras, detours, truth, images, fov }) {
    this.shown = { cameras, detours, truth, images, fov }
    this.rebuild()
    this.reset()
  }

  rebuild() {
    const { cameras, detours, truth, images, fov } = this.shown
    this.#clear()
    this.size = reach(cameras, detours, truth)
    const depth = Math.min(0.6, 0.34 * this.size)
    const shape = (index) => {
      const image = images[index]
      const half = depth * Math.tan((fov * Math.PI) / 360)
      return { depth, half, aspect: image ? image.width / image.height : 4 / 3 }
    }
    for (const { index, matrix } of cameras) {
      this.#add(frustum(shape(index), cameraColor(index), images[index]), matrix)
      this.#add(label(String(index), cameraColor(index), depth), matrix)
    }
    for (const { index, matrix } of detours) this.#add(outline(shape(index), cameraColor(index), 0.45, true), matrix)
    for (const { index, matrix } of truth) {
      if (index) this.#add(outline(shape(index), style('--good'), 0.9, false), matrix)
    }
    const points = cameras.map(({ matrix }) => new THREE.Vector3(...place(matrix)))
    if (points.length > 1) this.#path(points, depth)
    this.#ground([...cameras, ...detours, ...truth].map(({ matrix }) => place(matrix)), depth)
    this.canvas.dataset.cameras = cameras.length
    this.canvas.dataset.textured = cameras.filter(({ index }) => images[index]).length
    this.draw()
  }

  reset() {
    this.#look(new THREE.Vector3(0.6, 0.7, 1.35))
  }

  above() {
    this.#look(new THREE.Vector3(0, 1.9, 0.001))
  }

  /** Turn by steps: right and up of the viewer. */
  turn(right, up) {
    this.#move((spherical) => {
      spherical.theta += right * TURN
      spherical.phi = Math.max(0.02, Math.min(Math.PI - 0.02, spherical.phi - up * TURN))
    })
  }

  zoom(steps) {
    this.#move((spherical) => { spherical.radius /= ZOOM ** steps })
  }

  draw() {
    if (this.canvas.clientWidth) this.renderer.render(this.scene, this.camera)
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas.parentElement
    if (!width || !height) return
    this.renderer.setSize(width, height, false)
    this.camera.aspect = width / height
    this.camera.updateProjectionMatrix()
    this.draw()
  }

  #move(change) {
    const away = this.camera.position.clone().sub(this.controls.target)
    const spherical = new THREE.Spherical().setFromVector3(away)
    change(spherical)
    this.camera.position.copy(this.controls.target).add(away.setFromSpherical(spherical))
    this.controls.update()
    this.draw()
  }

  #look(direction) {
    const box = new THREE.Box3()
    this.world.updateMatrixWorld(true)
    this.world.children.filter((child) => child.userData.framed).forEach((child) => box.expandByObject(child))
    const sphere = box.getBoundingSphere(new THREE.Sphere())
    const narrow = Math.min(1, this.camera.aspect)
    const distance = (0.8 * sphere.radius) / Math.sin((this.camera.fov * Math.PI) / 360) / narrow
    this.controls.target.copy(sphere.center)
    this.camera.position.copy(sphere.center).add(direction.clone().normalize().multiplyScalar(distance))
    this.resize()
    this.controls.update()
    this.draw()
  }

  #add(object, matrix) {
    object.applyMatrix4(new THREE.Matrix4().set(...matrix.flat()))
    object.userData.framed = true
    this.world.add(object)
  }

  #path(points, depth) {
    const line = new THREE.Line(
      new THREE.BufferGeometry().setFromPoints(points), new THREE.LineBasicMaterial({ color: style('--ink') }))
    this.world.add(line)
    for (let k = 1; k < points.length; k++) {
      const step = points[k].clone().sub(points[k - 1])
      if (step.length() < 0.02) continue
      const cone = new THREE.Mesh(
        new THREE.ConeGeometry(depth * 0.07, depth * 0.2, 16), new THREE.MeshBasicMaterial({ color: style('--ink') }))
      cone.position.copy(points[k - 1]).addScaledVector(step, 0.5)
      cone.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), step.clone().normalize())
      this.world.add(cone)
    }
  }

  /** Squares of 1 m in the plane of the first camera's right and forward axes, below all cameras. */
  #ground(places, depth) {
    const floor = Math.max(...places.map(([, y]) => y)) + depth * 1.1
    const half = Math.ceil(this.size + depth) + 1
    const grid = new THREE.GridHelper(2 * half, 2 * half, style('--edge'), style('--edge'))
    Object.assign(grid.material, { transparent: true, opacity: 0.4 })
    grid.position.y = floor
    this.world.add(grid)
    for (const [x, y, z] of places) {
      const ends = [new THREE.Vector3(x, y, z), new THREE.Vector3(x, floor, z)]
      const material = new THREE.LineDashedMaterial({ color: style('--soft'), dashSize: 0.04, gapSize: 0.04 })
      this.world.add(new THREE.Line(new THREE.BufferGeometry().setFromPoints(ends), material).computeLineDistances())
    }
  }

  #clear() {
    this.world.traverse((object) => {
      object.geometry?.dispose()
      object.material?.map?.dispose()
      object.material?.dispose()
    })
    this.world.clear()
  }
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

function corners({ depth, half, aspect }) {
  const [x, y] = aspect >= 1 ? [half, half / aspect] : [half * aspect, half]
  return [[-x, -y], [x, -y], [x, y], [-x, y]].map(([a, b]) => new THREE.Vector3(a, b, depth))
}

/** The edges from the optical centre to the image plane, and around it. */
function outline(shape, color, opacity, dashed) {
  const tip = new THREE.Vector3()
  const [a, b, c, d] = corners(shape)
  const points = [tip, a, tip, b, tip, c, tip, d, a, b, b, c, c, d, d, a]
  const look = { color, opacity, transparent: opacity < 1 }
  const material = dashed ? new THREE.LineDashedMaterial({ ...look, dashSize: 0.03, gapSize: 0.025 })
    : new THREE.LineBasicMaterial(look)
  return new THREE.LineSegments(new THREE.BufferGeometry().setFromPoints(points), material).computeLineDistances()
}

/** A frustum with the photo on its plane; the photo is seen from both sides. */
function frustum(shape, color, image) {
  const group = new THREE.Group()
  group.add(outline(shape, color, 1, false))
  const [a, , c] = corners(shape)
  const material = new THREE.MeshBasicMaterial({ color: image ? '#ffffff' : color, side: THREE.DoubleSide })
  if (image) {
    material.map = new THREE.CanvasTexture(image)
    material.map.colorSpace = THREE.SRGBColorSpace
  } else Object.assign(material, { transparent: true, opacity: 0.25 })
  const plane = new THREE.Mesh(new THREE.PlaneGeometry(c.x - a.x, c.y - a.y), material)
  plane.rotation.x = Math.PI  // the photo's upper edge is towards -y
  plane.position.z = shape.depth
  group.add(plane)
  return group
}

/** A disc with the photo's number at the optical centre, always facing the viewer. */
function label(text, color, depth) {
  const canvas = document.createElement('canvas')
  canvas.width = canvas.height = 64
  const pen = canvas.getContext('2d')
  pen.fillStyle = color
  pen.arc(32, 32, 30, 0, 2 * Math.PI)
  pen.fill()
  pen.fillStyle = style('--paper')
  pen.font = '600 38px system-ui, sans-serif'
  pen.textAlign = 'center'
  pen.textBaseline = 'middle'
  pen.fillText(text, 32, 34)
  const map = new THREE.CanvasTexture(canvas)
  map.colorSpace = THREE.SRGBColorSpace
  const sprite = new THREE.Sprite(new THREE.SpriteMaterial({ map, depthTest: false }))
  sprite.scale.setScalar(depth * 0.3)
  sprite.renderOrder = 1
  return sprite
}
