// Package rootfs makes root disks: of layers of container images, of tars, and of Debian's
// packages.
//
// A stranger may have made everything that it reads, so nothing is ever unpacked into a directory
// of the host. [Read] gathers the names of all layers in memory, laid over each other by the rules
// of OCI's image-spec. Then [Root.Write] makes an empty ext4 with mke2fs and writes inodes,
// directories and contents into it by itself. The layers are read twice, and never held as a whole:
//
//	root, err := rootfs.Read(ctx, layers, limits, progress)
//	...
//	kernel := root.Keep("/boot/vmlinuz-6.1") // complete after Write
//	err = root.Write(ctx, "root.img", progress)
//
// [Limits] bound files, bytes, names and depth; digests are checked where a layer has them.
//
// Layers have these sources:
//
//   - [OpenTar] and [OpenDirectory] read archives of images. [Archive.OCI] and [Archive.Docker]
//     find the layers and the configuration in them. [Choose] finds the one image among the
//     manifests of these, and of a registry.
//   - [Debian] runs mmdebstrap, whose output is a tar.
//   - A [Piece] is a layer within a file that another process can read too.
//
// Disks that were made elsewhere are copied ([CopyDisk]) before [DiskFormat] looks into the copy,
// which their owner cannot change.
//
// The package starts no goroutines that outlive a call and keeps no state. It has no rights of its
// own: package image runs Read and Write in a process without any.
package rootfs
