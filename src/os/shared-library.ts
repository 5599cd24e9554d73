/** Finding shared libraries that a native package needs but does not bring where the loader looks. */
import koffi from 'koffi';

/**
 * Loads the first of these libraries that can be loaded, for the life of the process: a native module that is loaded
 * later and needs a library of that soname gets this one. Null when none can be.
 */
export const preloadLibrary = (candidates: readonly string[]): string | null => {
  for (const candidate of candidates) {
    try {
      koffi.load(candidate, { global: true });
      return candidate;
    } catch {
      // The next one, if any: the caller says what is missing.
    }
  }
  return null;
};
