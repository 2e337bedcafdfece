// Package image keeps the images that VMs boot, and builds more of them.
//
// An image is a directory with an image.json and the files that it names:
//
//	<state>/images/builtin/image.json
//	<state>/images/builtin/vmlinux
//	<state>/images/builtin/initramfs.cpio
//
// [Open] returns the images of a directory as a [Set], which a vmm.Manager uses and the mount
// shows. A user names a source, and the Set builds an image from it: source.go has a row for each
// kind of source. Each build is a goroutine at low priority (job.go), which [Set.Close] ends and
// waits for. A build's key is the digest of its inputs. Its files are kept below images/.blobs
// under that key, and images with the same key share them by hard links (blobs.go). The record
// beside an image.json (record.go) outlives the daemon.
//
// Two packages below this one know nothing of records and builds. rootfs makes root disks of
// layers, boot makes what machines boot beside them. Strangers wrote the layers, so a process
// without rights reads them (runner.go starts it, worker.go is its side). A daemon that builds
// images calls [Work] at its start if [IsWorker] is true.
//
// The built-in image (builtin.go) is made of a kernel, a static busybox and the agent, which lies
// beside the daemon's program. The kernel is Debian's for clouds or the host's own. Images with a
// root disk boot with that kernel and agent, and get new ones when the built-in image does.
//
// An image's directory is replaced as a whole and never written in place: a machine that runs from
// it keeps its open files.
package image
