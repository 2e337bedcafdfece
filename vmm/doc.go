// Package vmm says what a VM is and how it lives.
//
// The [Manager] owns every [VM] of one state directory. A VM has one owner at a
// time for its transitions (start, stop, kill, pause, ...): whoever holds the
// transition does the I/O, everybody else reads the immutable [Snapshot] that
// the last transition published, so that a reader never waits for a boot.
//
// The package knows neither files nor errnos: errors are told apart with the
// values of errors.go. What it needs from outside comes through the small
// interfaces [Driver], [Store], [Network] and [Images]; their implementations
// are the sub-packages, which import vmm and never the reverse.
package vmm
