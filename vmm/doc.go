// Package vmm says what a VM is and how it lives.
//
// The [Manager] owns every [VM] of one state directory. A VM has one transition at a time (start,
// stop, kill, pause, ...), in a goroutine of the Manager's, which does the I/O. Readers share the
// immutable [Snapshot] that the last change published, so that they never wait for a boot. The
// Manager also runs a goroutine that sweeps for idle VMs, and one for each VM that waits for its
// agent; Close waits for all of them.
//
// The package does not know the mount: its errors wrap ErrNotFound and the like, and fs maps those
// to errnos. It uses the outside through small interfaces, above all [Driver], [Store], [Network]
// and [Images]. The sub-packages implement them and import vmm, never the reverse.
package vmm
