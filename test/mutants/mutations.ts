/**
 * Steps of the protocols that hold data safe, each left out in turn. A mutation names a piece of the built program, what takes
 * its place, and the tests of which one must fail.
 */

export interface Mutation {
  /** The step that is left out. */
  readonly step: string;
  /** Below `dist/`. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
  readonly tests: readonly string[];
}

const PROTOCOL = ['test/reference/translation-protocol.test.js'];
const POWER_CUT = ['test/crash/power-cut.test.js'];
const SIGKILL = ['test/crash/sigkill.test.js'];
const HISTORIES = ['test/reference/qcow2-concurrency.test.js'];
const CONCURRENCY = ['test/conformance/qcow2-concurrency.test.js', ...HISTORIES, ...SIGKILL];
const BACKUP = [
  'test/unit/block/copy-before-write.test.js',
  'test/reference/backup.test.js',
  'test/reference/backup-workers.test.js',
];
const SUBCLUSTERS = ['test/qemu/subclusters.test.js', ...HISTORIES];

export const MUTATIONS: readonly Mutation[] = [
  {
    step: 'a worker makes its sequence odd before it loads entries',
    file: 'src/translation/hazards.js',
    find: `    enter() {
        Atomics.add(this.#words, this.#at + HAZARD_SEQUENCE, 1);`,
    replace: '    enter() {',
    tests: PROTOCOL,
  },
  {
    step: 'a worker publishes its pages before it enters',
    file: 'src/translation/hazards.js',
    find: 'Atomics.store(words, at + HAZARD_LAST_PAGE, lastPage);',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'a worker looks at the first word again after the second',
    file: 'src/translation/lookup.js',
    find: 'if (Atomics.load(words, entry) !== word0)',
    replace: 'if (false)',
    tests: PROTOCOL,
  },
  {
    step: 'a worker looks at the view again after it has entered',
    file: 'src/translation/lookup.js',
    find: 'Atomics.load(words, record + VIEW_PAGE_BITS) - 1 === bits &&',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'an entry is taken away before it is filled anew',
    file: 'src/translation/translation-table.js',
    find: `        Atomics.store(words, at, 0);
        if (permissions === 0`,
    replace: '        if (permissions === 0',
    tests: PROTOCOL,
  },
  {
    step: 'a closed view waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'await this.quiesce({ view, firstPage: 0, lastPage: PAGE_LIMIT });',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'an evicted slot waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'void this.quiesce({ view, firstPage, lastPage: firstPage + ENTRIES_PER_SLICE - 1 }).then(() => {',
    replace: 'void Promise.resolve().then(() => {',
    tests: PROTOCOL,
  },
  {
    step: 'the control plane waits for a worker that uses the pages',
    file: 'src/translation/hazards.js',
    find: 'if (this.isUsing(worker, range))',
    replace: 'if (false)',
    tests: PROTOCOL,
  },
  {
    step: 'data and refcounts are synced before entries name them',
    file: 'drivers/qcow2/checkpoint.js',
    find: `        await Promise.all([file.flush(), state.flushClusters()]);
        await writeMapping(state, covered);`,
    replace: '        await writeMapping(state, covered);',
    tests: POWER_CUT,
  },
  {
    step: 'entries are synced before a flush is answered',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'if (covered.slices.length + covered.l1.length > 0)',
    replace: 'if (false)',
    tests: POWER_CUT,
  },
  {
    step: 'new L2 tables are written before the L1 table names them',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await file.write(guestOffset(offset), content ?? new Uint8Array(state.clusterBytes));',
    replace: '',
    tests: POWER_CUT,
  },
  {
    step: 'refcounts are written before the entries',
    file: 'drivers/qcow2/checkpoint.js',
    find: 'await writeRefcounts(state, covered);',
    replace: '',
    tests: POWER_CUT,
  },
  {
    step: 'a change of mapping is journaled before its write is answered',
    file: 'drivers/qcow2/state.js',
    find: 'if (journal === null || changes.length === 0)',
    replace: 'if (true)',
    tests: SIGKILL,
  },
  {
    step: 'the journal is taken up by the next engine',
    file: 'drivers/qcow2/image.js',
    find: 'if (await replayJournal(this.#state))',
    replace: 'if (false)',
    tests: SIGKILL,
  },
  {
    step: 'a freed cluster waits for those who still read it',
    file: 'drivers/qcow2/release.js',
    find: 'await request.quiesce();',
    replace: '',
    tests: CONCURRENCY,
  },
  {
    step: 'a cluster whose mapping changed is locked against a second allocation',
    file: 'drivers/qcow2/write.js',
    find: 'const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);',
    replace:
      'lock.release(); const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);',
    tests: CONCURRENCY,
  },
  {
    step: 'the subclusters of a shared cluster go along when one of them is written',
    file: 'drivers/qcow2/write.js',
    find: 'await this.#copyKept(found);',
    replace: '',
    tests: SUBCLUSTERS,
  },
  {
    step: 'a write into the place of a cluster ends before the next subcluster of data',
    file: 'drivers/qcow2/write.js',
    find: 'runsOf(allocated & ~((1 << subcluster) - 1))',
    replace: 'runsOf(0)',
    tests: SUBCLUSTERS,
  },
  {
    step: 'a subcluster that is not written as a whole is filled up from below',
    file: 'drivers/qcow2/write.js',
    find: 'await request.readGuest(guestOffset(start), buffer.subarray(0, inside));',
    replace: '',
    tests: SUBCLUSTERS,
  },
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
];
