// Package fs is the mount: the tree of files in which VMs are seen and worked.
//
// Every file is a row of a table (table.go): name, mode, show, store. The raw
// bridge (raw.go) turns a request of the kernel into a row and, where the row
// is below vms/NAME, a VM. Node numbers are computed (nodeid.go), nothing is
// kept for an inode that nobody has open.
//
// A read: open(2) runs the row's show and keeps the bytes; every read(2) of
// that open is served from them. A write: write(2) runs the row's store, whose
// error becomes the errno (errno.go) and the sentence in the VM's `error`.
//
// The package runs two goroutines beside go-fuse's own: one tells inotify
// watchers of changes (nudge.go), one finds out what is watched (held.go). It never reads its own mount.
package fs
