/**
 * An image whose tables do not fit in its cache by far: lookups that leave nothing there, among writes, discards
 * and flushes, against a model. What is looked up is always what was written last.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { readAtOnce, writeAtOnce } from '../../src/block/at-once.ts';
import type { Node } from '../../src/block/node.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER = 16_384;
/** L2 tables have four slices; the cache has room for four of all. */
const SLICES = 64;
const SLICE_ENTRIES = 512;
const DISK_BYTES = SLICES * SLICE_ENTRIES * CLUSTER;
/** Clusters of each slice that the guest uses. */
const USED = 4;
const PLACES = SLICES * USED;
const BLOCK_BYTES = 4096;
const STEPS = 500;
/** Looked at after each step, beside what it has changed. */
const GLANCES = 3;

const offsetOf = (place: number): number =>
  (Math.floor(place / USED) * SLICE_ENTRIES + 100 * (place % USED)) * CLUSTER;

class Scene {
  readonly #node: Node;
  readonly #random: Random;
  /** By place: what each byte of it is. */
  readonly #expected = new Uint8Array(PLACES);
  readonly #read = new Uint8Array(BLOCK_BYTES);
  #recent = 0;
  atOnce = 0;

  constructor(node: Node, random: Random) {
    this.#node = node;
    this.#random = random;
  }

  async step(): Promise<void> {
    // Somewhere, or near where something was lately, so that slices come back soon.
    const near = (this.#recent + this.#random.below(6 * USED)) % PLACES;
    const place = this.#random.below(2) === 0 ? this.#random.below(PLACES) : near;
    this.#recent = place;
    await this.#glance(place);
    await this.#change(place);
    for (let i = 0; i < GLANCES; i++) await this.#glance(this.#random.below(PLACES));
    await this.#glance(place);
  }

  async #change(place: number): Promise<void> {
    const at = guestOffset(offsetOf(place));
    switch (this.#random.below(8)) {
      case 0:
        await this.#node.discard(at, CLUSTER);
        this.#expected[place] = 0;
        return;
      case 1:
        await this.#node.writeZeroes(at, CLUSTER, { unmap: false });
        this.#expected[place] = 0;
        return;
      case 2:
        if (this.#random.below(8) === 0) await this.#node.flush();
        return;
      case 3:
        return;
      default: {
        const byte = 1 + this.#random.below(255);
        const bytes = new Uint8Array(BLOCK_BYTES).fill(byte);
        if (!writeAtOnce(this.#node, at, bytes)) await this.#node.write(at, bytes);
        this.#expected[place] = byte;
      }
    }
  }

  async #glance(place: number): Promise<void> {
    const at = offsetOf(place);
    if (readAtOnce(this.#node, at, this.#read)) this.atOnce++;
    else await this.#node.read(guestOffset(at), this.#read);
    const expected = this.#expected[place];
    const wrong = this.#read.findIndex((byte) => byte !== expected);
    assert.ok(wrong < 0, `place ${place}: ${this.#read[wrong]} instead of ${expected}`);
  }
}

for (const seed of [1, 2]) {
  test(`what is looked up in an image much larger than its cache is what was written last (seed ${seed})`, async (t) => {
    const directory = await scratchDirectory(t);
    const path = join(directory, 'disk.qcow2');
    const options = `cluster_size=${CLUSTER}`;
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, path, String(DISK_BYTES)]);
    const graph = await testGraph({ directory, cacheBytes: 1 });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    const scene = new Scene(node, seededRandom(seed));
    for (let step = 0; step < STEPS; step++) await scene.step();
    assert.ok(scene.atOnce > STEPS, `${scene.atOnce} reads at once`);
    await graph.close(node);
    await assertClean(path);
  });
}
