/**
 * The layers that a view stands on, while commit, stream, an external snapshot or a pivot changes them: no content is lost on
 * the way, and the next engine finds the same layers.
 */
import type { Mutation } from './mutations.ts';

const ORDER = ['test/reference/job-order.test.js'];
const FAULTS = ['test/reference/chain-faults.test.js'];
const STREAM = ['test/reference/stream.test.js'];

export const CHAIN_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a view whose record cannot be taken back stands for what is recorded',
    file: 'mount/catalog/pivot.js',
    find: 'image.pivoted(candidate, unseen(descriptor, candidate.host, inspectionBefore));',
    replace: 'image.pivoted(before, inspectionBefore);',
    tests: FAULTS,
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
    step: 'what a view stands for is remembered before its root is swapped',
    file: 'mount/catalog/pivot.js',
    find: `    const candidate = await remember(scene, target, []);
    image.pivoted(candidate, inspection);
    const old = image.view.swapRoot(target);`,
    replace: `    const old = image.view.swapRoot(target);
    const candidate = await remember(scene, target, []);
    image.pivoted(candidate, inspection);`,
    tests: ['test/unit/mount/pivot.test.js'],
  },
  {
    step: 'who asks for a shared layer counts before it has it',
    file: 'src/block/shared-layers.js',
    find: 'known.users++;',
    replace: '',
    tests: ['test/unit/block/shared-layers.test.js'],
  },
];
