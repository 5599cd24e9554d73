/** The steps of FSYNCs that workers answer: when they may, and that a failure reaches everybody. */
import type { Mutation } from './mutations.ts';

const PROTOCOL = ['test/reference/translation-syncs.test.js'];
const IN_THE_FILE = ['test/reference/worker-syncs.test.js'];
const FAILED = ['test/reference/failed-syncs.test.js'];

export const SYNC_MUTATIONS: readonly Mutation[] = [
  {
    step: 'workers stop answering FSYNCs before a change begins',
    file: 'src/block/flush-mark.js',
    find: `        this.#inFlight++;
        this.#set(false);`,
    replace: '        this.#inFlight++;',
    tests: IN_THE_FILE,
  },
  {
    step: 'a flush beside which a change was in flight does not let workers answer FSYNCs',
    file: 'src/block/flush-mark.js',
    find: 'this.#inFlight === 0 ? this.#begun : null;',
    replace: 'this.#begun;',
    tests: IN_THE_FILE,
  },
  {
    step: 'a flush during which a change began does not let workers answer FSYNCs',
    file: 'src/block/flush-mark.js',
    find: 'succeeded && begun === this.#begun;',
    replace: 'succeeded;',
    tests: IN_THE_FILE,
  },
  {
    step: 'a write at once is a change that a flush has to cover',
    file: 'src/block/at-once.js',
    find: `    node.flushMark.changeBegins();
    const isWritten = orNothing(() => driver.writeAtOnce?.(guestOffset(offset), buffer, cluster));
    node.flushMark.changeEnded();`,
    replace:
      '    const isWritten = orNothing(() => driver.writeAtOnce?.(guestOffset(offset), buffer, cluster));',
    tests: IN_THE_FILE,
  },
  {
    step: 'a sync that has failed is told before the view may be synced again',
    file: 'src/translation/syncs.js',
    find: `        if (errno !== 0)
            Atomics.store(words, this.#record + VIEW_SYNC_FAILED, errno);
        Atomics.store(words, this.#record + VIEW_SYNC_BUSY, 0);`,
    replace: `        Atomics.store(words, this.#record + VIEW_SYNC_BUSY, 0);
        if (errno !== 0)
            Atomics.store(words, this.#record + VIEW_SYNC_FAILED, errno);`,
    tests: PROTOCOL,
  },
  {
    step: 'a view is synced by one worker at a time',
    file: 'src/translation/syncs.js',
    find: 'Atomics.exchange(words, this.#record + VIEW_SYNC_BUSY, 1) === 0',
    replace: 'true',
    tests: PROTOCOL,
  },
  {
    step: 'nobody syncs a view in which a sync has failed',
    file: 'src/translation/syncs.js',
    find: 'Atomics.load(words, this.#record + VIEW_SYNC_FAILED) !== 0',
    replace: 'false',
    tests: PROTOCOL,
  },
  {
    step: 'a descriptor to sync is loaded inside of the hazard record',
    file: 'src/translation/syncs.js',
    find: `        this.#hazard.enter();
        if (Atomics`,
    replace: `        const before = Atomics.load(words, this.#record + VIEW_SYNC_FILE) - 1;
        this.#hazard.enter();
        if (before >= 0 && Atomics.exchange(words, this.#record + VIEW_SYNC_BUSY, 1) === 0)
            return before;
        if (Atomics`,
    tests: PROTOCOL,
  },
  {
    step: 'a view that is closed names no descriptor to sync',
    file: 'src/translation/translation-table.js',
    find: 'Atomics.store(words, record + VIEW_SYNC_FILE, 0);',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'who closes a view waits for its sync',
    file: 'src/translation/translation-table.js',
    find: 'firstPage: SYNC_PAGE, lastPage: PAGE_LIMIT',
    replace: 'firstPage: 0, lastPage: PAGE_LIMIT',
    tests: PROTOCOL,
  },
  {
    step: 'who waits for every worker passes over syncs alone',
    file: 'src/translation/hazards.js',
    find: 'Atomics.load(words, at + HAZARD_KIND) !== SYNC;',
    replace: 'false;',
    tests: PROTOCOL,
  },
  {
    step: 'the failure of a worker that synced fails its FSYNC',
    file: 'mount/kernel/worker.js',
    find: 'fields.setUint32(base + REQUEST_BODY_AT + FSYNC_IN.padding, errno, true);',
    replace: '',
    tests: FAILED,
  },
  {
    step: 'the failure of a worker that synced fails later flushes',
    file: 'mount/kernel/data-requests.js',
    find: 'context.translations?.syncHasFailed(entry);',
    replace: '',
    tests: FAILED,
  },
  {
    step: 'the failure of a worker that synced fails later flushes also when the view was closed in between',
    file: 'mount/kernel/node-translations.js',
    find: `        await this.#table.closeView(number);
        this.#noteSyncFailure(view);`,
    replace: '        await this.#table.closeView(number);',
    tests: FAILED,
  },
];
