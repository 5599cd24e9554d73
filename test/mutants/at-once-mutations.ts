/** The steps of writes that are done in one turn of the event loop, and of the allocator that they share with others. */
import type { Mutation } from './mutations.ts';

const AT_ONCE = ['test/unit/drivers/qcow2/write-at-once.test.js', 'test/crash/sigkill.test.js'];
const GLANCES = ['test/unit/block/table-cache.test.js', 'test/reference/small-cache.test.js'];
const CORRUPTION = ['test/qemu/run-time-corruption.test.js'];

export const AT_ONCE_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a write at once keeps off clusters that somebody is changing',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'if (locks.isBusy({ start, end: alignUp(end, clusterBytes) }))',
    replace: 'if (false)',
    tests: AT_ONCE,
  },
  {
    step: 'a cluster that is written at once is journaled before the write is answered',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'if (!state.offer([...allocated, map.entryChange(slice, place.index, now)]))',
    replace: 'if (false)',
    tests: AT_ONCE,
  },
  {
    step: 'clusters that are written at once are journaled before the write is answered',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'this.#orGivenBack(allocation, isWritten) && state.offer(changes);',
    replace: 'this.#orGivenBack(allocation, isWritten);',
    tests: AT_ONCE,
  },
  {
    step: 'a cluster whose write at once has failed is given back',
    file: 'drivers/qcow2/write-at-once.js',
    find: `        if (!isDone)
            clusters.giveBackAtOnce(allocation);`,
    replace: '',
    tests: AT_ONCE,
  },
  {
    step: 'a cluster that was taken once is no new space, whatever is known of the end of the file',
    file: 'drivers/qcow2/allocator.js',
    find: 'first >= this.#top && ',
    replace: '',
    tests: AT_ONCE,
  },
  {
    step: 'a new refcount block is journaled before anything that it counts',
    file: 'drivers/qcow2/allocator.js',
    find: '        tell([...made.changes, refcounts.set(made.block, first, 1)]);',
    replace: '        refcounts.set(made.block, first, 1);',
    tests: ['test/crash/sigkill-order.test.js'],
  },
  {
    step: 'a corrupt refcount that was met at once is met again',
    file: 'drivers/qcow2/allocator.js',
    find: `            const allocation = this.#count(run);
            this.#cursor = hostCluster(run.first + run.count);`,
    replace: `            this.#cursor = hostCluster(run.first + run.count);
            const allocation = this.#count(run);`,
    tests: CORRUPTION,
  },
  {
    step: 'a write at once to a data file looks where its entry leads',
    file: 'drivers/qcow2/write-at-once.js',
    find: 'if (state.dataFile !== null && isElsewhere)',
    replace: 'if (false)',
    tests: CORRUPTION,
  },
  {
    step: 'a table that is changed is on trial no more',
    file: 'src/block/table-cache.js',
    find: 'this.#endTrial(table.key);',
    replace: '',
    tests: GLANCES,
  },
  {
    step: 'a table that something else is put in the place of is on trial no more',
    file: 'src/block/table-cache.js',
    find: 'this.#endTrial(key);',
    replace: '',
    tests: GLANCES,
  },
  {
    step: 'the place of a table on trial says nothing while another is read into it',
    file: 'src/block/table-cache.js',
    find: `        trial.key = NO_TABLE;
        if`,
    replace: '        if',
    tests: GLANCES,
  },
  {
    step: 'a new table holds zeros, whatever was looked up in its memory before',
    file: 'drivers/qcow2/cluster-map.js',
    find: 'bytes.fill(0);',
    replace: ';',
    tests: GLANCES,
  },
];
