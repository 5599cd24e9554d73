/** The steps of jobs that change chains and copy disks: commit, stream, backup, external snapshot, and mirrors that write through. */
import type { Mutation } from './mutations.ts';

const ORDER = ['test/reference/job-order.test.js'];
const FAULTS = ['test/reference/chain-faults.test.js'];
const BACKUP = ['test/reference/backup.test.js'];
const MIRROR = [
  'test/reference/mirror.test.js',
  'test/reference/mirror-errors.test.js',
  'test/reference/mirror-cancel.test.js',
];
const LET_GO = ['test/reference/mirror-let-go.test.js'];
const STREAM = ['test/reference/stream.test.js'];

export const JOB_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a view whose record cannot be taken back stands for what is recorded',
    file: 'mount/catalog/pivot.js',
    find: 'image.pivoted(candidate, unseen(descriptor, candidate.host, inspectionBefore));',
    replace: 'image.pivoted(before, inspectionBefore);',
    tests: FAULTS,
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
    file: 'src/block/view.js',
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
    step: 'commit: the base is flushed before the overlay names it',
    file: 'src/job/commit.js',
    find: 'await view.withRoot(() => base.flush());',
    replace: '',
    tests: [...ORDER, ...FAULTS],
  },
  {
    step: 'commit: the header is changed when all is in the base',
    file: 'src/job/commit.js',
    find: 'await copies.finish();',
    replace: '',
    tests: FAULTS,
  },
  {
    step: 'commit: what was ignored keeps the chain',
    file: 'src/job/commit.js',
    find: 'this.#failures.throwIgnored();',
    replace: '',
    tests: FAULTS,
  },
  {
    step: 'commit: nothing is in flight when the header is changed and the chain opened anew',
    file: 'src/job/commit.js',
    find: `await view.drained(async () => {
            await this.#zeroGrowth();`,
    replace: `await (async (run) => run())(async () => {
            await this.#zeroGrowth();`,
    tests: ORDER,
  },
  {
    step: 'commit: a chain that does not open at once is opened by the next request',
    file: 'mount/catalog/pivot.js',
    find: `        if (root === null)
            await image.closedBeside();
        view.swapRoot(root);
    };`,
    replace: `        view.swapRoot(root);
    };`,
    tests: FAULTS,
  },
  {
    step: 'commit of the image itself: the overlay gives up what it has when the base is flushed',
    file: 'src/control/commands/block-commit.js',
    find: `            if (root.backing === base && root.driver.makeEmpty !== undefined)
                await root.makeEmpty();`,
    replace:
      '            await base.writeZeroes(0, 512, { unmap: false }); await root.makeEmpty();',
    tests: ORDER,
  },
  {
    step: 'commit of the image itself: one that has become complete needs what lies below it when it is emptied',
    file: 'drivers/add-cow/completion.js',
    find: `            if (state.isAllAllocated)
                await this.#say(false);`,
    replace: '',
    tests: ['test/reference/commit.test.js'],
  },
  {
    step: 'stream: the header is changed when all is copied',
    file: 'src/job/stream.js',
    find: 'await Promise.all([copies.finish(), directCopies.finish()]);',
    replace: '',
    tests: FAULTS,
  },
  {
    step: 'stream: what was ignored keeps the chain',
    file: 'src/job/stream.js',
    find: 'this.#failures.throwIgnored();',
    replace: '',
    tests: FAULTS,
  },
  {
    step: "stream: the guest's write wins against the copy in flight",
    file: 'drivers/qcow2/write.js',
    find: "m.kind === 'unallocated' ? await this.#writeAllocating(at, part, COPY) : part.length;",
    replace: 'await this.#writeAllocating(at, part, COPY);',
    tests: STREAM,
  },
  {
    step: 'block status: refcounts that could not be read once are no error for good',
    file: 'drivers/qcow2/image.js',
    find: 'hasPreallocatedMetadata(file, checkShapeOf(header)).catch(() => false);',
    replace: 'hasPreallocatedMetadata(file, checkShapeOf(header));',
    tests: ['test/reference/unread-refcounts.test.js'],
  },
  {
    step: 'backup: its bitmap is cleared only when it has succeeded',
    file: 'src/job/backup.js',
    find: `        if (this.#hasSucceeded)
            this.#bitmap?.succeed();
        else
            this.#bitmap?.fail(point.uncopied);`,
    replace: '        this.#bitmap?.succeed();',
    tests: BACKUP,
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
    step: 'external snapshot: what programs have written before is in it, also what the kernel still holds',
    file: 'src/control/commands/external-snapshot.js',
    find: "await context.syncDevice(device, 'snapshot');",
    replace: '',
    tests: ORDER,
  },
  {
    step: 'external snapshot: the image is flushed before the view stands for the overlay',
    file: 'src/control/commands/external-snapshot.js',
    find: 'await root.flush();',
    replace: '',
    tests: ORDER,
  },
  {
    step: 'external snapshot: what the view stands for is remembered',
    file: 'mount/catalog/pivot.js',
    find: 'await standIns.put(record);\n    return',
    replace: 'return',
    tests: ['test/reference/chain-model.test.js'],
  },
  {
    step: 'external snapshot: a view that can go neither on nor back at once does so at the next request',
    file: 'mount/catalog/pivot.js',
    find: `        log.error(image.name, \`what it stands for does not open, until it is used next: \${reason}\`);
        return null;`,
    replace: '        throw error;',
    tests: FAULTS,
  },
  {
    step: 'pivot over a layer: what was opened and not gone on with is closed',
    file: 'mount/catalog/pivot.js',
    find: 'await graph.close(opened).catch(() => undefined);',
    replace: 'await Promise.resolve();',
    tests: FAULTS,
  },
  {
    step: 'pivot over a layer: the chain is cut when what the view stands for is remembered',
    file: 'mount/catalog/pivot.js',
    find: 'const candidate = await remember(scene, target, committed);',
    replace: `for (const node of above.slice(-1)) node.backing = null;
    const candidate = await remember(scene, target, committed);`,
    tests: FAULTS,
  },
  {
    step: 'pivot over a layer: what the view stands on is closed, however the target closes',
    file: 'mount/catalog/pivot.js',
    find: 'finally {\n        if (root !== null)',
    replace: 'finally {\n        if (root === null)',
    tests: FAULTS,
  },
  {
    step: 'pivot over a layer: a view that is closed is opened as requests open it',
    file: 'mount/catalog/pivot.js',
    find: 'if (view.root === null && ownLayers === null)\n        return view.open();',
    replace: '',
    tests: FAULTS,
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
];
