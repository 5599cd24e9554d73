/** What `vdiskfs activate` and `deactivate` ask of the engine that serves a view. */
import { BlockError } from '../base/block-error.ts';
import { QmpError } from '../control/client.ts';
import { connectToDevice } from './mounted-device.ts';

/** Errors: EINVAL for a path that is no view, and whatever the engine refuses. */
export const setActive = async (
  path: string,
  { active, force }: { readonly active: boolean; readonly force: boolean },
): Promise<void> => {
  const { client, device } = await connectToDevice(path);
  try {
    const given = active ? { device, active } : { device, active, force };
    await client.execute('__vdiskfs_set_active', given);
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    const op = active ? 'activate' : 'deactivate';
    throw new BlockError({ kind: 'bad-request', message: error.message, path, op });
  } finally {
    client.close();
  }
};
