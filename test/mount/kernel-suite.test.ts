import { KERNEL } from './suite/subject.ts';
import { mountSuite } from './suite.ts';

mountSuite(KERNEL);
