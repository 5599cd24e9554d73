/**
 * Views that the kernel reads and writes by itself (FOPEN_PASSTHROUGH, Linux 6.9): raw images, whose bytes are the
 * file's, and others whose driver knows such a file (`flatFile`), while every handle of the view was opened so. The view is
 * told that it is written beside (`View.isWrittenBeside`).
 *
 * The kernel refuses an ordinary handle beside a passthrough one, and another backing id beside the first. So an id is
 * kept from the first such open to the last release, and told to the supervisor: a later engine goes on with it.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { closeBacking, openBacking } from '../../src/os/mounts.ts';
import type { Entry } from '../directory.ts';

/** What a passthrough handle has as its number; ordinary ones have 0. */
export const PASSTHROUGH_HANDLE = 1;

export interface PassthroughUse {
  readonly nodeId: number;
  readonly backingId: number;
  /** Open handles; 0 says that the id is closed. */
  readonly handles: number;
}

export interface PassthroughOptions {
  /** Of /dev/fuse. */
  readonly descriptor: number;
  /** What earlier engines of the mount have left open. */
  readonly inherited: readonly PassthroughUse[];
  /** Before the kernel hears of it. */
  readonly changed: (use: PassthroughUse) => void;
  readonly log: Log;
}

export class Passthrough {
  readonly #options: PassthroughOptions;
  readonly #uses: Map<number, PassthroughUse>;
  #refused = false;

  constructor(options: PassthroughOptions) {
    this.#options = options;
    this.#uses = new Map(options.inherited.map((use) => [use.nodeId, use]));
  }

  isUsed(nodeId: number): boolean {
    return this.#uses.has(nodeId);
  }

  /** The descriptor of the one file whose bytes, all of them and from its start, are the view's; null for none. Errors: EIO. */
  async flatFileOf(root: Node, readOnly: boolean): Promise<number | null> {
    if (this.#refused || root.lengthBytes === 0) return null;
    // What the kernel writes by itself is in no dirty bitmap.
    if (!readOnly && root.dirtyBitmaps.isRecording) return null;
    const file =
      root.driver.flatFile === undefined
        ? wholeRunOf(root, readOnly)
        : await root.driver.flatFile.call(root.driver);
    if (file === null || file.lengthBytes !== root.lengthBytes) return null;
    return file.driver.hostFd ?? null;
  }

  /**
   * The backing id for a new handle; null when it has to be an ordinary one. `file`: what `flatFileOf` gave. `alone`: no
   * ordinary handle is open.
   */
  open(entry: Entry, file: number | null, alone: boolean): number | null {
    const { nodeId, view } = entry;
    const known = this.#uses.get(nodeId);
    if (known !== undefined) return this.#set({ ...known, handles: known.handles + 1 });
    const { root } = view;
    if (file === null || !alone || root === null) return null;
    // It may have begun since.
    if (!view.readOnly && root.dirtyBitmaps.isRecording) return null;
    try {
      const backingId = openBacking(this.#options.descriptor, file);
      view.isWrittenBeside = true;
      return this.#set({ nodeId, backingId, handles: 1 });
    } catch (error) {
      const reason = error instanceof BlockError ? error.describe() : String(error);
      this.#options.log.warning(entry.name, `no passthrough: ${reason}`);
      this.#refused = true;
      return null;
    }
  }

  released(nodeId: number): void {
    const known = this.#uses.get(nodeId);
    if (known === undefined) return;
    this.#set({ ...known, handles: known.handles - 1 });
  }

  #set(use: PassthroughUse): number {
    this.#options.changed(use);
    if (use.handles > 0) this.#uses.set(use.nodeId, use);
    else {
      this.#uses.delete(use.nodeId);
      closeBacking(this.#options.descriptor, use.backingId);
    }
    return use.backingId;
  }
}

/** The file that all of an image lies in as one run. */
const wholeRunOf = (root: Node, readOnly: boolean): Node | null => {
  const { lengthBytes } = root;
  const m = root.driver.mapping(guestOffset(0), lengthBytes);
  if (m instanceof Promise || m.kind !== 'data' || m.hostOffset !== 0) return null;
  if (m.lengthBytes !== lengthBytes || (!readOnly && !m.inPlace)) return null;
  return m.file;
};
