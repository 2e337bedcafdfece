// Package boot makes what a machine boots beside its root disk: kernels, initramfs archives and
// the seed disk for cloud-init.
//
// Three kinds of machines boot three sets of files:
//
//   - The built-in image is a kernel that is installed somewhere ([Installed]) and an initramfs
//     with busybox and the agent ([Guest]). It has no root disk. The kernel is the host's
//     ([Running]), or that of Debian's package ([FetchKernel], [Unpack]).
//   - An image with a root disk boots the kernel of that disk ([FindKernel]) or else the built-in
//     one. [Write] makes an archive of the kernel's modules and of the program to run. [Join] puts
//     it behind the built-in initramfs, which has the agent.
//   - A disk that boots through firmware gets a [Seed], from which cloud-init installs the agent
//     ([Agent] reads it from the built-in initramfs).
//
// QEMU enters an uncompressed kernel faster than a bzImage, so [PVHKernel] unpacks kernels that say
// where (through the PVH note). Strangers wrote the kernels of root disks: whatever they hold, the
// package returns an error or at most [KernelLimit] bytes.
//
// The package keeps no state, starts no goroutines, and writes only into its arguments'
// directories. FetchKernel and Unpack run Debian's tools,
// [Applets] runs busybox. The same input always
// yields the same bytes, because images are compared by their digests.
package boot
