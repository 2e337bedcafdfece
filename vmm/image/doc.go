// Package image keeps what VMs boot from, and makes the built-in image.
//
// An image is a directory with an image.json and the files that it names:
//
//	<state>/images/builtin/image.json
//	<state>/images/builtin/vmlinux
//	<state>/images/builtin/initramfs.cpio
//
// [Open] gives the images of a directory to a vmm.Manager, and makes more of them
// from what users name as their sources (source.go has a row for each kind): each
// build is a goroutine at low priority (job.go); what record.go keeps of them outlives the daemon. What the layers of an image say is
// gathered in memory (tree.go) and written into an ext4 (ext4.go), never into
// a directory of the host. Built files are kept below images/.blobs and shared by hard links (blobs.go).
//
// [Build] makes the built-in
// image from Debian's cloud kernel, busybox and the guest's agent; the same
// inputs give the same bytes. [Install] puts a built image where a daemon finds it.
//
// An image's directory is replaced as a whole and never written to in place: a
// machine that runs from it keeps the files that it has open.
package image
