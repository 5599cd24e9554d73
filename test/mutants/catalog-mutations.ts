/** What is known of the images in a directory. */
import type { Mutation } from './mutations.ts';

export const CATALOG_MUTATIONS: readonly Mutation[] = [
  {
    step: 'a scan that has seen a file before we closed it does not take it for another one',
    file: 'mount/catalog/image-entry.js',
    find: 'isSame && this.#seenMs >= sinceMs',
    replace: 'false',
    tests: ['test/unit/mount/catalog-scan-races.test.js'],
  },
  {
    step: 'what is known of an image since a scan has looked at it stays',
    file: 'mount/catalog/image-entry.js',
    find: 'if (this.inspection === found.inspectionBefore)',
    replace: '',
    tests: ['test/unit/mount/catalog-scan-races.test.js'],
  },
];
