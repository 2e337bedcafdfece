// Mkimage makes banger's built-in image for the tests, as a daemon makes it for its VMs. It is a
// tool of the Makefile (`make image`), not a program that banger installs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"banger/vmm"
	"banger/vmm/image"
)

func main() {
	cache := flag.String("cache", ".cache/image", "directory of the image and the kernel's package")
	agent := flag.String("agent", "bin/banger-agent", "static banger-agent, the guest's init")
	busybox := flag.String("busybox", "", "static busybox, the host's if empty")
	refresh := flag.Bool("refresh", false, "ask apt for a newer kernel")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	h := image.Host{Agent: *agent, Busybox: *busybox, Packages: filepath.Join(*cache, "kernel"),
		Kept: !*refresh}
	if err := build(ctx, image.Options{Dir: *cache, Host: h}); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, o image.Options) error {
	set, err := image.Open(o)
	if err != nil {
		return err
	}
	defer set.Close()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	_, err = set.Create(ctx, image.Builtin, vmm.Owner{UID: uid, GID: gid, Mode: 0o755})
	if err != nil && !errors.Is(err, vmm.ErrExists) {
		return err
	}
	for _, i := range set.Infos() {
		if i.Name != image.Builtin {
			continue
		}
		if err := set.Build(ctx, i.Number, "builtin", vmm.Caller{UID: uid, GID: gid}); err != nil {
			return err
		}
		_, err := set.Wait(ctx, i.Number)
		return err
	}
	return vmm.ErrNotFound
}
