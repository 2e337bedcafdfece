// Package vmm says what a VM is and how it lives.
//
// The [Manager] owns every [VM] of one state directory. A VM has one owner at a
// time for its transitions (start, stop, kill, pause, ...): whoever holds the
// transition does the I/O, everybody else reads the immutable [Snapshot] that
// the last transition published, so that a reader never waits for a boot.
//
// The package does not know the mount: it returns errors that wrap the values of
// errors.go, and fs turns those into errnos. What it needs from outside comes
// through small interfaces, above all [Driver], [Store], [Network], [Images] and
// [Guest]; their implementations are the sub-packages, which import vmm and never
// the reverse.
package vmm
