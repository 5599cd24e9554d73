/**
 * Steps of the protocols that hold data safe, each left out in turn. A mutation names a piece of the built program, what takes
 * its place, and the tests of which one must fail. The lists beside this file are by what the steps protect.
 */

import { AHEAD_MUTATIONS } from './ahead-mutations.ts';
import { AT_ONCE_MUTATIONS } from './at-once-mutations.ts';
import { CATALOG_MUTATIONS } from './catalog-mutations.ts';
import { CHAIN_MUTATIONS } from './chain-mutations.ts';
import { CLUSTER_MUTATIONS } from './cluster-mutations.ts';
import { COPY_MUTATIONS } from './copy-mutations.ts';
import { JOB_MUTATIONS } from './job-mutations.ts';
import { JOURNAL_MUTATIONS } from './journal-mutations.ts';
import { ORDER_MUTATIONS } from './order-mutations.ts';
import { SYNC_MUTATIONS } from './sync-mutations.ts';
import { TRANSLATION_MUTATIONS } from './translation-mutations.ts';

export interface Mutation {
  /** The step that is left out. */
  readonly step: string;
  /** Below `dist/`. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
  readonly tests: readonly string[];
}

export const MUTATIONS: readonly Mutation[] = [
  ...TRANSLATION_MUTATIONS,
  ...JOURNAL_MUTATIONS,
  ...ORDER_MUTATIONS,
  ...CLUSTER_MUTATIONS,
  ...CHAIN_MUTATIONS,
  ...COPY_MUTATIONS,
  ...JOB_MUTATIONS,
  ...CATALOG_MUTATIONS,
  ...AHEAD_MUTATIONS,
  ...AT_ONCE_MUTATIONS,
  ...SYNC_MUTATIONS,
];
