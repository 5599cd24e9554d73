/**
 * The supervisor's process. `vdiskfs mount` starts it detached, while it reads the command line itself (head-start.ts), then
 * sends the configuration over the channel, and gets back whether the mount is usable; then the channel is closed and the
 * daemon is on its own. With --foreground the same runs in the command's own process (launch.ts).
 *
 * The engine is started first of all: loading its modules takes longest.
 */
import { startFirstEngine } from './first-engine.ts';

const engine = startFirstEngine();
const { superviseDaemon } = await import('./supervisor-process.ts');
superviseDaemon(engine);
