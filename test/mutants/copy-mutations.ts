/**
 * Copies of a disk that its guest goes on writing to: a backup is of one moment, a mirror misses nothing, and a job that ends
 * has let go.
 */
import type { Mutation } from './mutations.ts';

const ORDER = ['test/reference/job-order.test.js'];
const FAULTS = ['test/reference/chain-faults.test.js'];
const BACKUP = [
  'test/unit/block/copy-before-write.test.js',
  'test/reference/backup.test.js',
  'test/reference/backup-workers.test.js',
];
const MIRROR = [
  'test/reference/mirror.test.js',
  'test/reference/mirror-errors.test.js',
  'test/reference/mirror-cancel.test.js',
];
const ANY_MIRROR = [...MIRROR, 'test/reference/mirror-model.test.js'];
const IN_MEMORY = ['test/unit/drivers/file/memory-copies.test.js'];
const LET_GO = ['test/reference/mirror-let-go.test.js'];

export const COPY_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a write waits until what it changes was copied',
    file: 'src/block/copy-before-write.js',
    find: 'await this.#admitted(offset, Math.min(offset + lengthBytes, this.#left.lengthBytes));',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'a write waits for a copy that is in flight',
    file: 'src/block/copy-before-write.js',
    find: 'const waits = this.#flightsIn(start, end).map((f) => f.ended);',
    replace: 'const waits = []; if (this.#left.nextDirty(start, end) === null) return;',
    tests: BACKUP,
  },
  {
    step: 'pages have no write permission before their blocks are done',
    file: 'src/block/copy-before-write.js',
    find: 'await node.dirtyBitmaps.add(this.#done);',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'blocks whose copy failed are left again',
    file: 'src/block/copy-before-write.js',
    find: 'this.#left.mark(start, lengthBytes);',
    replace: '',
    tests: BACKUP,
  },
  {
    step: 'a bitmap keeps what was written during a backup that succeeds',
    file: 'src/job/frozen-bitmap.js',
    find: 'this.#root.dirtyBitmaps.replaceContent(this.#bitmap, this.#successor.content);',
    replace: 'this.#root.dirtyBitmaps.clear(this.#bitmap, 0, this.content.lengthBytes);',
    tests: BACKUP,
  },
  {
    step: 'a mirror waits for the writes that a range has been taken out of the bitmap for',
    file: 'src/job/mirror-copy.js',
    find: 'await root.quiesceChanges();',
    replace: '',
    tests: ANY_MIRROR,
  },
  {
    step: 'a range that a mirror could not copy is dirty again',
    file: 'src/job/mirror-copy.js',
    find: `            this.#bitmap.mark(start, lengthBytes);
            // Nobody`,
    replace: '            // Nobody',
    tests: ANY_MIRROR,
  },
  {
    step: 'a write that did not reach the target of a mirror is dirty',
    file: 'src/job/write-through.js',
    find: `            bitmap.mark(start, lengthBytes);
            failed(`,
    replace: '            failed(',
    tests: ANY_MIRROR,
  },
  {
    step: 'a write to a mirror that is write-blocking waits for the copy of its range',
    file: 'src/job/write-through.js',
    find: 'await lockOrAborted(locks, { start, end }, signal)',
    replace: '{ [Symbol.dispose]: () => undefined }',
    tests: ANY_MIRROR,
  },
  {
    step: 'a bit of a mirror that outlives its engine is set before the write that it stands for',
    file: 'src/block/dirty-tracking.js',
    find: 'this.persistence?.mark(start, lengthBytes);',
    replace: '',
    tests: ['test/crash/mirror-sigkill.test.js'],
  },
  {
    step: 'a bit of a mirror that is write-blocking is set before the write',
    file: 'src/job/write-through.js',
    find: 'bitmap.persistence?.mark(change.offset, change.lengthBytes);',
    replace: '',
    tests: ANY_MIRROR,
  },
  {
    step: 'the target of a mirror is flushed before its pivot',
    file: 'src/job/mirror.js',
    find: `        await root.flush();
        await this.#flushTarget();`,
    replace: '        await root.flush();',
    tests: ANY_MIRROR,
  },
  {
    step: 'the descriptor that a hanging copy reads from is closed when the copy ends',
    file: 'src/job/direct-copy.js',
    find: 'place.file.lateClose.hold()',
    replace: '() => undefined',
    tests: LET_GO,
  },
  {
    step: 'a guest does not wait for the range of a copy that nobody wants any more',
    file: 'src/job/write-through.js',
    find: 'await lockOrAborted(locks, { start, end }, signal)',
    replace: 'await locks.acquire({ start, end })',
    tests: LET_GO,
  },
  {
    step: 'what waited for its turn is not begun when its job was given up',
    file: 'src/block/admission.js',
    find: 'signal?.throwIfAborted();',
    replace: '',
    tests: ['test/unit/block/view.test.js'],
  },
  {
    step: 'what was in flight when a mirror was cancelled is left in its bitmap',
    file: 'src/job/mirror.js',
    find: 'this.#copy?.keepOpen();',
    replace: '',
    tests: MIRROR,
  },
  {
    step: 'backup: its bitmap is cleared only when it has succeeded',
    file: 'src/job/backup.js',
    find: `        if (this.#hasSucceeded)
            this.#bitmap?.succeed();
        else
            this.#bitmap?.fail(point.uncopied);`,
    replace: '        this.#bitmap?.succeed();',
    tests: ['test/reference/backup.test.js'],
  },
  {
    step: 'backup: it has succeeded when its target is flushed',
    file: 'src/job/backup.js',
    find: 'await orAborted(this.#options.target.node.flush(), control.signal);',
    replace: '',
    tests: [...ORDER, ...FAULTS],
  },
  {
    step: 'backup: what was ignored is an error in the end',
    file: 'src/job/backup.js',
    find: `        if (this.#ignored !== null)
            throw this.#ignored;`,
    replace: '',
    tests: FAULTS,
  },
  {
    step: 'backup: what programs have written before is in it, also what the kernel still holds',
    file: 'src/control/commands/backup.js',
    find: "await context.syncDevice(device, 'backup');",
    replace: '',
    tests: ORDER,
  },
  {
    step: 'write-through: a write is answered when the target has it',
    file: 'src/job/write-through.js',
    find: 'await orAborted(writes, signal);',
    replace: 'void writes;',
    tests: MIRROR,
  },
  {
    step: 'write-through: what lies past the end of the target is dirty',
    file: 'src/job/write-through.js',
    find: `        if (limit < end)
            bitmap.mark(Math.max(offset, limit), end - Math.max(offset, limit));`,
    replace: '',
    tests: MIRROR,
  },
  {
    step: 'write-through: a write that has failed leaves its range dirty',
    file: 'src/job/write-through.js',
    find: `                bitmap.mark(change.offset, change.lengthBytes);
                throw error;`,
    replace: '                throw error;',
    tests: FAULTS,
  },
  {
    step: 'tmpfs: bytes past the end of a file are not taken for copied',
    file: 'drivers/file/copy-task.js',
    find: 'mayMap && to.offset + lengthBytes <= endOf(to.fd)',
    replace: 'mayMap',
    tests: IN_MEMORY,
  },
  {
    step: 'tmpfs: what a mapping did not take is copied in the other way',
    file: 'drivers/file/copy-task.js',
    find: 'readIntoFileAtOnce(from, to, lengthBytes) === lengthBytes',
    replace: 'readIntoFileAtOnce(from, to, lengthBytes) >= 0',
    tests: IN_MEMORY,
  },
  {
    step: 'tmpfs: a copy that finds another one at work does not wait for it',
    file: 'drivers/file/copy-task.js',
    find: 'mayMap && to.offset',
    replace: 'false && to.offset',
    tests: IN_MEMORY,
  },
  {
    step: 'tmpfs: a copy may make the file longer for others, and keeps its end from being cut off',
    file: 'drivers/file/host-copies.js',
    find: 'Number.POSITIVE_INFINITY',
    replace: 'end',
    tests: ['test/unit/drivers/file/space-ahead.test.js'],
  },
  {
    step: 'tmpfs: a copy that fails gives its turn back',
    file: 'drivers/file/copy-task.js',
    find: `    finally {
        turns.giveBack();
    }`,
    replace: '    finally { }',
    tests: IN_MEMORY,
  },
  {
    step: 'tmpfs: a thread that dies leaves no copy waiting',
    file: 'drivers/file/copy-threads.js',
    find: `            for (const { resolve } of this.#tasks.values())
                resolve(null);`,
    replace: '',
    tests: IN_MEMORY,
  },
];
