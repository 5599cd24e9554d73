/**
 * Random work on an image with internal snapshots, by QEMU's tools and by ours in turn, beside a model of what the image
 * and each of its snapshots must show.
 */
import assert from 'node:assert/strict';
import { readFile, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { drivers } from '../../drivers/index.ts';
import type { Random } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { noLocks } from '../../src/block/image-locks.ts';
import type { Node } from '../../src/block/node.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { resizeImage } from '../../src/image/resize.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/image/snapshot.ts';
import { noSecrets } from './no-secrets.ts';
import { qemuImg, qemuIo } from './qemu-img.ts';
import { testGraph } from './test-graph.ts';

/** What an image is, as far as the model must know. */
export interface SnapshotCase {
  readonly name: string;
  readonly clusterBytes: number;
  /** Version 2 does not resize an image with snapshots. */
  readonly resizes: boolean;
  readonly packs: boolean;
  /** How many snapshots its refcounts can count. */
  readonly maxSnapshots: number;
}

interface Kept {
  readonly name: string;
  readonly content: Uint8Array;
}

/** Of offline work in this process: all drivers, no locks. */
export const context = {
  registry: new DriverRegistry(drivers),
  locks: noLocks,
  backingDirectories: [],
  secrets: noSecrets,
};

export class SnapshotSteps {
  /** What was done, for messages. */
  readonly done: string[] = [];
  readonly #path: string;
  readonly #case: SnapshotCase;
  readonly #random: Random;
  #content: Uint8Array;
  #kept: Kept[] = [];
  #names = 0;

  constructor(path: string, c: SnapshotCase, random: Random, content: Uint8Array) {
    this.#path = path;
    this.#case = c;
    this.#random = random;
    this.#content = Uint8Array.from(content);
  }

  /** One step by one of the two programs. */
  async step(): Promise<void> {
    const random = this.#random;
    const ours = random.below(3) > 0;
    const kind = random.below(20);
    if (kind < 9) await this.#write(ours);
    else if (kind < 11) await this.#zero(ours);
    else if (kind < 15) await this.#create(ours);
    else if (kind < 17) await this.#apply(ours);
    else if (kind < 19) await this.#remove(ours);
    else await this.#resize(ours);
  }

  /** QEMU finds the image clean, and it and one of its snapshots show what they must, to QEMU and to us. */
  async verify(): Promise<void> {
    const what = this.done.join('; ');
    await qemuImg(['check', '-q', '-f', 'qcow2', this.#path]).catch((error: Error) => {
      throw new Error(`${what}: ${error.message}`);
    });
    const flat = `${this.#path}.flat`;
    await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', this.#path, flat]);
    assert.ok(same(await readFile(flat), this.#content), what);
    if (this.#kept.length > 0) {
      const { name, content } = this.#random.pick(this.#kept);
      const snapshot = `snapshot.name=${name}`;
      await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', '-l', snapshot, this.#path, flat]);
      // It shows snapshots in the size of the active state.
      const shown = await readFile(flat);
      const length = Math.min(shown.length, content.length);
      const [a, b] = [shown.subarray(0, length), content.subarray(0, length)];
      assert.ok(same(a, b), `${name} after ${what}`);
    }
    await rm(flat);
    await this.#verifyOurs(what);
  }

  async #verifyOurs(what: string): Promise<void> {
    const graph = await testGraph({ directory: dirname(this.#path) });
    const image = { path: this.#path, format: 'qcow2', readOnly: true };
    const active = await graph.open(image);
    assert.ok(same(await contentOf(active), this.#content), what);
    const found = await active.withSnapshots('list', (snapshots) => snapshots.list());
    assert.deepEqual(
      found.map(({ name }) => name),
      this.#kept.map(({ name }) => name),
      what,
    );
    for (const [i, { name, content }] of this.#kept.entries()) {
      const view = await graph.open({ ...image, snapshot: found[i]?.id });
      assert.ok(same(await contentOf(view), content), `${name} after ${what}`);
      await graph.close(view);
    }
    await graph.close(active);
  }

  async #write(ours: boolean): Promise<void> {
    const random = this.#random;
    const { clusterBytes, packs } = this.#case;
    // QEMU packs only what was not written before.
    const packed = packs && ours && random.below(3) === 0;
    const clusters = Math.floor(this.#content.length / clusterBytes);
    const offset = packed
      ? random.below(clusters) * clusterBytes
      : random.below(this.#content.length / 512) * 512;
    const most = packed ? clusterBytes : clusterBytes * 4;
    const length = packed
      ? clusterBytes
      : Math.min(512 * (1 + random.below(most / 512)), this.#content.length - offset);
    const value = 1 + random.below(250);
    this.#did(ours, `write${packed ? ' packed' : ''} ${value} at ${offset}, ${length}`);
    const bytes = new Uint8Array(length).fill(value);
    if (!ours) await qemuIo(this.#path, [`write -P ${value} ${offset} ${length}`]);
    else
      await this.#open((node) =>
        packed
          ? node.writeCompressed(guestOffset(offset), bytes)
          : node.write(guestOffset(offset), bytes),
      );
    this.#content.set(bytes, offset);
  }

  async #zero(ours: boolean): Promise<void> {
    const random = this.#random;
    const offset = random.below(this.#content.length / 512) * 512;
    const most = Math.min(this.#content.length - offset, 8 * this.#case.clusterBytes);
    const length = 512 * (1 + random.below(most / 512));
    this.#did(ours, `zero at ${offset}, ${length}`);
    const unmap = random.below(2) === 0;
    if (!ours) await qemuIo(this.#path, [`write -z ${unmap ? '-u ' : ''}${offset} ${length}`]);
    else await this.#open((node) => node.writeZeroes(guestOffset(offset), length, { unmap }));
    this.#content.fill(0, offset, offset + length);
  }

  async #create(ours: boolean): Promise<void> {
    if (this.#kept.length >= this.#case.maxSnapshots) return;
    const name = `s${this.#names++}`;
    this.#did(ours, `create ${name}`);
    if (ours) await createSnapshot(this.#image, name, context);
    else await qemuImg(['snapshot', '-c', name, this.#path]);
    this.#kept.push({ name, content: Uint8Array.from(this.#content) });
  }

  async #apply(ours: boolean): Promise<void> {
    if (this.#kept.length === 0) return;
    const { name, content } = this.#random.pick(this.#kept);
    // Applying counts everything once more for a moment.
    if (this.#kept.length >= this.#case.maxSnapshots) return;
    this.#did(ours, `apply ${name}`);
    if (ours) await applySnapshot(this.#image, name, context);
    else await qemuImg(['snapshot', '-a', name, this.#path]);
    this.#content = Uint8Array.from(content);
  }

  async #remove(ours: boolean): Promise<void> {
    if (this.#kept.length === 0) return;
    const gone = this.#random.pick(this.#kept);
    this.#did(ours, `delete ${gone.name}`);
    if (ours) await deleteSnapshot(this.#image, gone.name, context);
    else await qemuImg(['snapshot', '-d', gone.name, this.#path]);
    this.#kept = this.#kept.filter((kept) => kept !== gone);
  }

  async #resize(ours: boolean): Promise<void> {
    if (!this.#case.resizes && this.#kept.length > 0) return;
    const clusters = Math.ceil(this.#content.length / this.#case.clusterBytes);
    const now = Math.max(4, clusters - 8 + this.#random.below(20)) * this.#case.clusterBytes;
    this.#did(ours, `resize to ${now}`);
    if (ours) {
      const size = { bytes: now, isRelative: false };
      await resizeImage({ ...this.#image, size, shrink: true, preallocation: 'off' }, context);
    } else await qemuImg(['resize', '-q', '-f', 'qcow2', '--shrink', this.#path, String(now)]);
    const content = new Uint8Array(now);
    content.set(this.#content.subarray(0, now));
    this.#content = content;
  }

  get #image(): { readonly path: string; readonly format: string } {
    return { path: this.#path, format: 'qcow2' };
  }

  async #open(use: (node: Node) => Promise<void>): Promise<void> {
    const graph = await testGraph({ directory: dirname(this.#path) });
    const node = await graph.open({ ...this.#image, readOnly: false });
    await use(node);
    await graph.close(node);
  }

  #did(ours: boolean, what: string): void {
    this.done.push(`${ours ? 'vdiskfs' : 'qemu'}: ${what}`);
  }
}

const contentOf = async (node: Node): Promise<Uint8Array> => {
  const bytes = new Uint8Array(node.lengthBytes);
  await node.read(guestOffset(0), bytes);
  return bytes;
};

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;
