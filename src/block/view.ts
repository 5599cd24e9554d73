/**
 * A view: the flat raw file that a guest or a program sees, with the root node that a drained section may swap.
 *
 * It owns the guest's rules (reads end at the end of the file, writes past it grow, shrinking only when allowed) and
 * the opening and closing of the chain, which is opened when first used. When a request may begin, `Admission` says. Both
 * backends (the FUSE session and fuse-native) drive a mount through this class alone.
 *
 * Concurrency: any number of requests run at once; `drained` waits for those that have begun, holds those that come
 * later, and never fails them.
 */
import { assert, present } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { isAllZero } from '../base/range.ts';
import { type GuestOffset, guestOffset, MAX_OFFSET } from '../base/units.ts';
import { Admission } from './admission.ts';
import { readAtOnce, writeAtOnce } from './at-once.ts';
import type { Node } from './node.ts';

/** `on`: a write of nothing but zeros is a write-zeroes; `unmap`: one that also gives its space back. As QEMU has it. */
export type DetectZeroes = 'off' | 'on' | 'unmap';

export interface ViewOptions {
  /** The file's name in the mount, with `.raw`. May be a getter: a view is renamed when a name clashes. */
  readonly name: string;
  /** Why writes are refused, for the log; null for a writable view. May be a getter: asked at each request. */
  readonly readOnlyReason: string | null;
  readonly allowShrink: boolean;
  /** What writes of zeros become; 'off' when it is not given. */
  readonly detectZeroes?: DetectZeroes;
  readonly log: Log;
  /** Opens the chain; called when the view is first used, and again after an idle close. */
  readonly open: () => Promise<Node>;
  readonly close: (root: Node) => Promise<void>;
  /** Told of each read before it is done; for records of what a guest reads. */
  readonly noteRead?: (offset: number, lengthBytes: number) => void;
  /** Nobody but guests needs it open any more. */
  readonly unpinned?: () => void;
}

export class View {
  readonly #options: ViewOptions;
  #root: Node | null = null;
  #opening: Promise<Node> | null = null;
  /** Resolves when the closing that is under way has ended, however. */
  #closing: Promise<void> | null = null;
  #pins = 0;
  #isWrittenBeside = false;
  readonly #admission = new Admission();

  /** Awaited at the start of each drained section: whoever does I/O beside the view (the data plane) ends it. */
  readonly drainListeners = new Set<() => Promise<void>>();

  constructor(options: ViewOptions) {
    this.#options = options;
  }

  get name(): string {
    return this.#options.name;
  }

  get readOnly(): boolean {
    return this.#options.readOnlyReason !== null;
  }

  get readOnlyReason(): string | null {
    return this.#options.readOnlyReason;
  }

  /** Every write is looked at here, so nobody may write beside the view. */
  get detectsZeroes(): boolean {
    return (this.#options.detectZeroes ?? 'off') !== 'off';
  }

  /** The opened root, null while closed. */
  get root(): Node | null {
    return this.#root;
  }

  /** Inside a drained section, or waiting for one to begin: nobody may begin I/O beside the view. */
  get isDraining(): boolean {
    return this.#admission.drain !== null;
  }

  /**
   * A kernel writes the image's file by itself (passthrough), past its end too: the view takes up its length before it
   * matters, and nothing that must see each write begins.
   */
  get isWrittenBeside(): boolean {
    return this.#isWrittenBeside;
  }

  set isWrittenBeside(value: boolean) {
    this.#isWrittenBeside = value;
    if (this.#root !== null) this.#root.dirtyBitmaps.isBlind = value;
  }

  /** Requests that have begun and not ended. */
  get active(): number {
    return this.#admission.active;
  }

  /** Another host may use the image: requests wait, and the chain is not opened. */
  get isHeld(): boolean {
    return this.#admission.hold !== null;
  }

  /**
   * From now on requests wait, however long, until `letGo`, and `open` is refused. Those that have begun come to their end:
   * `close` waits for them.
   */
  hold(): void {
    this.#admission.beginHold();
  }

  /** Requests go on. */
  letGo(): void {
    this.#admission.endHold();
  }

  /**
   * Opens the chain if it is not open. Two callers share one opening. `held`: also while requests are held. Errors: those
   * of the graph; EBUSY while they are.
   */
  async open(options: { readonly held?: boolean } = {}): Promise<Node> {
    if (this.isHeld && options.held !== true) {
      throw new BlockError({
        kind: 'busy',
        op: 'open',
        message: `the view ${this.name} is inactive: another host may use its image`,
        hint: '`vdiskfs activate` takes it back',
      });
    }
    if (this.#root !== null) return this.#root;
    this.#opening ??= this.#openNow()
      .then((root) => {
        this.#root = root;
        root.dirtyBitmaps.isBlind = this.#isWrittenBeside;
        return root;
      })
      .finally(() => {
        this.#opening = null;
      });
    return this.#opening;
  }

  // Never two instances of one image: what is being closed still writes.
  async #openNow(): Promise<Node> {
    while (this.#closing !== null) await this.#closing;
    return this.#options.open();
  }

  /** Drains, flushes and closes. The next use opens it again. */
  async close(): Promise<void> {
    await this.drained(async () => {
      // One that was let in before requests were held.
      if (this.isHeld) await this.#opening?.catch(() => undefined);
      const root = this.#root;
      this.#root = null;
      if (root === null) return;
      const closing = this.#options.close(root);
      this.#closing = closing.catch(() => undefined);
      try {
        await closing;
      } finally {
        this.#closing = null;
      }
    });
  }

  async lengthBytes(): Promise<number> {
    return (await this.#openRoot()).lengthBytes;
  }

  /** Also in a drained section, unless that has closed the chain: then the one that follows. */
  async #openRoot(): Promise<Node> {
    for (;;) {
      const root = await this.#openForRequest();
      const { drain } = this.#admission;
      if (root.isOpen || drain === null) return root;
      await drain;
    }
  }

  /** Where the file may have been made longer behind the driver's back, by a kernel that writes it directly, the image grows too. */
  async reloadLength(): Promise<void> {
    if (!this.#isWrittenBeside || this.isHeld) return;
    const root = await this.open();
    const isLonger = (): boolean => (root.driver.grownBytes ?? 0) > root.lengthBytes;
    await root.driver.reloadLength?.();
    if (this.readOnly || !isLonger()) return;
    await this.drained(async () => {
      if (isLonger()) await root.resize(present(root.driver.grownBytes, 'it has grown'));
    });
  }

  /** Fills the start of the buffer; returns how many bytes lie before the end of the file: fewer only there. */
  async read(offset: GuestOffset, buffer: Uint8Array): Promise<number> {
    return this.#request(async (root) => {
      const inside = Math.max(0, Math.min(buffer.length, root.lengthBytes - offset));
      if (inside > 0) this.#options.noteRead?.(offset, inside);
      await root.read(offset, buffer.subarray(0, inside));
      return inside;
    });
  }

  /** Writes all of the buffer, growing the image when it reaches past the end. Errors: EROFS, ENOSPC, EFBIG, EIO. */
  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#growFor('write', offset, buffer.length);
    const { detectZeroes = 'off' } = this.#options;
    const unmap = detectZeroes === 'unmap';
    const isZero = detectZeroes !== 'off' && buffer.length > 0 && isAllZero(buffer);
    await this.#request((root) =>
      isZero ? root.writeZeroes(offset, buffer.length, { unmap }) : root.write(offset, buffer),
    );
  }

  /** `read`, waiting for nothing; null when it has to. */
  readAtOnce(offset: GuestOffset, buffer: Uint8Array): number | null {
    const root = this.#root;
    if (root === null || this.#admission.wait !== null) return null;
    const inside = Math.max(0, Math.min(buffer.length, root.lengthBytes - offset));
    if (!readAtOnce(root, offset, buffer.subarray(0, inside))) return null;
    if (inside > 0) this.#options.noteRead?.(offset, inside);
    return inside;
  }

  /**
   * `write`, waiting for nothing, inside of the image's length; false when it has to wait, or has failed: nothing was done. `cluster`: see
   * `DriverInstance.writeAtOnce`.
   */
  writeAtOnce(offset: GuestOffset, buffer: Uint8Array, cluster: Uint8Array | null = null): boolean {
    const root = this.#root;
    if (root === null || this.#admission.wait !== null || this.readOnly) return false;
    if (this.#isWrittenBeside || this.detectsZeroes) return false;
    if (offset + buffer.length > root.lengthBytes) return false;
    return writeAtOnce(root, offset, buffer, cluster);
  }

  /** fallocate PUNCH_HOLE|KEEP_SIZE: what lies inside the file reads as zeros and gives its space back. */
  async punchHole(offset: GuestOffset, lengthBytes: number): Promise<void> {
    this.#refuseReadOnly('punch hole');
    await this.#request((root) => root.discard(offset, insideOf(root, offset, lengthBytes)));
  }

  /** fallocate ZERO_RANGE; without `keepSize` a range past the end grows the file. Space stays allocated where the format can say so. */
  async zeroRange(
    offset: GuestOffset,
    lengthBytes: number,
    options: { keepSize: boolean },
  ): Promise<void> {
    this.#refuseReadOnly('zero range');
    if (!options.keepSize) await this.#growFor('zero range', offset, lengthBytes);
    await this.#request((root) =>
      root.writeZeroes(offset, insideOf(root, offset, lengthBytes), { unmap: false }),
    );
  }

  /**
   * fallocate mode 0: content stays, later writes of the range do not fail for lack of space where the format can
   * promise that; a range past the end grows the file unless `keepSize`.
   */
  async allocate(
    offset: GuestOffset,
    lengthBytes: number,
    options: { keepSize: boolean },
  ): Promise<void> {
    this.#refuseReadOnly('allocate');
    if (!options.keepSize) await this.#growFor('allocate', offset, lengthBytes);
    await this.#request((root) => root.allocate(offset, insideOf(root, offset, lengthBytes)));
  }

  /** ftruncate. Errors: EPERM when smaller and not allowed; EROFS; ENOSPC. */
  async truncate(lengthBytes: number): Promise<void> {
    this.#refuseReadOnly('truncate');
    await this.reloadLength();
    const now = await this.lengthBytes();
    if (lengthBytes < now && !this.#options.allowShrink) {
      const message = `refused to shrink the disk from ${now} to ${lengthBytes} bytes`;
      const hint = 'use dd with conv=notrunc, or mount with --allow-shrink';
      this.#options.log.warning(this.name, `${message}: ${hint}`);
      throw new BlockError({
        kind: 'not-permitted',
        errno: 'EPERM',
        op: 'truncate',
        message,
        hint,
      });
    }
    if (lengthBytes !== now) await this.#resize(async (root) => root.resize(lengthBytes));
  }

  /** fsync: everything answered before it survives a power cut. */
  async flush(): Promise<void> {
    await this.reloadLength();
    await this.#request((root) => root.flush());
  }

  /** lseek SEEK_DATA or SEEK_HOLE. Errors: ENXIO past the end, or when no data follows. */
  async seek(offset: GuestOffset, what: 'data' | 'hole'): Promise<number> {
    return this.#request(async (root) => {
      const end = root.lengthBytes;
      for (let at: number = offset; at < end; ) {
        const status = await root.blockStatus(guestOffset(at), end - at);
        if (status.data === (what === 'data')) return at;
        at += status.lengthBytes;
      }
      if (offset < end && what === 'hole') return end;
      throw new BlockError({
        kind: 'out-of-range',
        op: 'seek',
        message: `no ${what} from there on`,
        offset,
      });
    });
  }

  /** Bytes for st_blocks. */
  async allocatedBytes(): Promise<number> {
    return (await this.open()).driver.allocatedBytes();
  }

  /**
   * Runs `change` while no request of this view is in flight. Requests that come meanwhile are held, in order, and go
   * on afterwards. Sections queue behind each other; a request never calls it (it would wait for itself).
   */
  drained<T>(change: () => Promise<T>): Promise<T> {
    return this.#admission.drained(async () => {
      for (const stop of this.drainListeners) await stop();
      // Copies of what was read outlive their readers.
      await this.#root?.copyOnRead?.settled();
      assert(this.active === 0, 'nothing is in flight in a drained section');
      return change();
    });
  }

  /**
   * Goes on over another image, under the guest: the caller has seen to it that it shows the same. In a drained section
   * alone. Null: it is opened anew when it is used next. Returns the old root, which the caller closes.
   */
  swapRoot(root: Node | null): Node {
    assert(this.isDraining && this.active === 0, 'a root is swapped in a drained section');
    const old = present(this.#root, 'a view whose root is swapped is open');
    this.#root = root;
    if (root !== null) root.dirtyBitmaps.isBlind = this.#isWrittenBeside;
    return old;
  }

  /**
   * I/O of a job on the image, between drained sections as a guest's is. Not for changes of the graph. Errors: the signal's reason,
   * when it is aborted before the I/O begins: what nobody wants any more does not open what was closed.
   */
  withRoot<T>(run: (root: Node) => Promise<T>, signal?: AbortSignal): Promise<T> {
    return this.#request(run, signal);
  }

  /** Keeps an idle view open, and as writable as it is, until the returned function is called: a job works on it. */
  pin(): () => void {
    this.#pins++;
    let isPinned = true;
    return () => {
      if (!isPinned) return;
      isPinned = false;
      this.#pins--;
      if (this.#pins === 0) this.#options.unpinned?.();
    };
  }

  /** Somebody but the guest needs it open. */
  get isPinned(): boolean {
    return this.#pins > 0;
  }

  async #openForRequest(): Promise<Node> {
    while (this.#admission.hold !== null) await this.#admission.hold;
    return this.open();
  }

  #request<T>(run: (root: Node) => Promise<T>, signal?: AbortSignal): Promise<T> {
    return this.#admission.request(
      () => (this.#root === null ? this.open().then(run) : run(this.#root)),
      signal,
    );
  }

  async #growFor(op: string, offset: number, lengthBytes: number): Promise<void> {
    this.#refuseReadOnly(op);
    await this.reloadLength();
    const end = offset + lengthBytes;
    if (end > MAX_OFFSET) {
      throw new BlockError({
        kind: 'bad-request',
        errno: 'EFBIG',
        op,
        message: 'is past the largest offset',
        offset,
      });
    }
    if (end <= (await this.lengthBytes())) return;
    await this.#resize(async (root) => {
      if (end > root.lengthBytes) await root.resize(end);
    });
  }

  // A hold that began while it waited for its turn keeps it waiting.
  async #resize(change: (root: Node) => Promise<void>): Promise<void> {
    for (let isDone = false; !isDone; ) {
      await this.#openForRequest();
      isDone = await this.drained(async () => {
        if (this.isHeld) return false;
        await change(await this.open());
        return true;
      });
    }
  }

  #refuseReadOnly(op: string): void {
    const reason = this.#options.readOnlyReason;
    if (reason === null) return;
    throw new BlockError({ kind: 'read-only', op, message: `the view is read-only: ${reason}` });
  }
}

const insideOf = (root: Node, offset: number, lengthBytes: number): number =>
  Math.max(0, Math.min(lengthBytes, root.lengthBytes - offset));
