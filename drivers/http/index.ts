/**
 * The `http` protocol: a file on a web server (http://, https://), for reading, through range requests.
 *
 * docs/REMOTE.md says what is expected of servers and what happens when they do not do it.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor, DriverInstance, OpenPathRequest } from '../../src/block/driver.ts';
import { splitCredential } from '../../src/block/remote-access.ts';
import { withoutPassword } from '../../src/block/remote-url.ts';
import { HTTP_LIMITS, type HttpLimits } from './limits.ts';

const openPath = async (request: OpenPathRequest, limits: HttpLimits): Promise<DriverInstance> => {
  const path = withoutPassword(request.path);
  if (!request.readOnly || request.create) {
    const message = 'a web server is only read';
    throw new BlockError({ kind: 'read-only', message, path, op: 'open' });
  }
  const { url, credential } = splitCredential(request.path);
  const given = request.credentials ?? [];
  const credentials = credential === null ? given : [credential, ...given];
  const { RemoteFile } = await import('./remote-file.ts');
  const file = new RemoteFile({ ...request, path, credentials }, new URL(url), limits);
  try {
    await file.learn();
    return file;
  } catch (error) {
    await file.close();
    throw toBlockError(error, { op: 'open', path });
  }
};

/** The driver with limits of one's own: tests wait less. */
export const httpDriver = (limits: Partial<HttpLimits> = {}): DriverDescriptor => ({
  name: 'http',
  role: 'protocol',
  schemes: ['http', 'https'],
  capabilities: {
    write: false,
    backing: false,
    zeroWithoutSpace: false,
    discard: false,
    grow: false,
    shrink: false,
    create: false,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  createOptions: [],
  openPath: (request) => openPath(request, { ...HTTP_LIMITS, ...limits }),
});

export const http: DriverDescriptor = httpDriver();
