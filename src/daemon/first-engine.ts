/** The first engine of a mount, which loads its modules while others of the start are still at work. */
import { silentLog } from '../base/log.ts';
import { EngineProcess } from './engine-process.ts';
import { protectFromPressure } from './memory-pressure.ts';

/** Nothing is known of the mount yet. Errors: those of the host, when it has no descriptors left. */
export const startFirstEngine = (): EngineProcess => {
  protectFromPressure(silentLog);
  return new EngineProcess();
};

let ahead: EngineProcess | null = null;

/** Starts the one that `takeEngine` will want, in a command that stays; returns what ends it when nobody has. */
export const beginEngine = (): { readonly abandonUnused: () => void } => {
  ahead = startFirstEngine();
  return { abandonUnused };
};

/** The one that was begun ahead, which is the caller's now; null for none. */
export const takeEngine = (): EngineProcess | null => {
  const taken = ahead;
  ahead = null;
  return taken;
};

const abandonUnused = (): void => takeEngine()?.kill();
