import { Secrets } from '../../src/block/secrets.ts';

/** For who opens nothing encrypted. */
export const noSecrets = new Secrets([], { keep: false });
