/** The protocol between the control plane, which fills and takes away translations, and the workers, which use them. */
import type { Mutation } from './mutations.ts';

const PROTOCOL = [
  'test/reference/translation-protocol.test.js',
  'test/reference/translation-views.test.js',
];

const SLOTS = ['test/reference/translation-slots.test.js'];
const ALONG = ['test/reference/translation-pages-along.test.js'];

export const TRANSLATION_MUTATIONS: readonly Mutation[] = [
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
    step: 'an entry is filled only while no worker uses its page',
    file: 'src/translation/entry-writer.js',
    find: 'if (isUsed && this.#watch',
    replace: 'if (false && this.#watch',
    tests: ALONG,
  },
  {
    step: 'a worker looks at the view again after it has entered',
    file: 'src/translation/lookup.js',
    find: 'Atomics.load(words, record + VIEW_STATE) === state &&\n            offset',
    replace: 'offset',
    tests: PROTOCOL,
  },
  {
    step: 'a page that comes along was read by an entry that is in force',
    file: 'src/translation/translation-table.js',
    find: 'Atomics.load(words, at) === word0 &&',
    replace: '',
    tests: ALONG,
  },
  {
    step: 'a page that comes along was read in the same opening of the view',
    file: 'src/translation/translation-table.js',
    find: '=== state &&\n            Atomics',
    replace: '>= 0 &&\n            Atomics',
    tests: ALONG,
  },
  {
    step: 'an entry is taken away before it is filled anew',
    file: 'src/translation/entry-writer.js',
    find: 'Atomics.store(words, word, 0);',
    replace: ';',
    tests: PROTOCOL,
  },
  {
    step: 'a worker looks at the version of a slot again',
    file: 'src/translation/lookup.js',
    find: '(version & 1) !== 0 || Atomics.load(words, tag + TAG_VERSION) !== version',
    replace: '(version & 1) !== 0',
    tests: SLOTS,
  },
  {
    step: 'the version of a slot is odd while its numbers change',
    file: 'src/translation/translation-table.js',
    find: `            Atomics.add(words, tag + TAG_VERSION, 1);
            Atomics.store(words, tag + TAG_VIEW, view);
            Atomics.store(words, tag + TAG_SLICE, slice);
            Atomics.add(words, tag + TAG_VERSION, 1);`,
    replace: `            Atomics.store(words, tag + TAG_VIEW, view);
            Atomics.store(words, tag + TAG_SLICE, slice);
            Atomics.add(words, tag + TAG_VERSION, 2);`,
    tests: SLOTS,
  },
  {
    step: 'a closed view waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'await this.quiesce({ view, firstPage: SYNC_PAGE, lastPage: PAGE_LIMIT });',
    replace: '',
    tests: PROTOCOL,
  },
  {
    step: 'an evicted slot waits for the workers',
    file: 'src/translation/translation-table.js',
    find: 'void this.quiesce(pages).then(() => {',
    replace: 'void Promise.resolve().then(() => {',
    tests: PROTOCOL,
  },
  {
    step: 'an evicted slot is free at once only where no worker uses its pages',
    file: 'src/translation/translation-table.js',
    find: 'if (!this.#watch.isUsed(pages)) {',
    replace: 'if (true) {',
    tests: PROTOCOL,
  },
  {
    step: 'the control plane waits for a worker that uses the pages',
    file: 'src/translation/hazards.js',
    find: 'waits.push(this.#waitFor(worker));',
    replace: '{}',
    tests: PROTOCOL,
  },
];
