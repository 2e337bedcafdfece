// Mkimage makes banger's built-in image and installs it. It is a tool of the
// Makefile (`make image`), not a program that banger installs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"banger/vmm/image"
)

func main() {
	cache := flag.String("cache", ".cache/image", "directory of the image and the kernel's package")
	agent := flag.String("agent", "bin/banger-agent", "static banger-agent, the guest's init")
	busybox := flag.String("busybox", "/bin/busybox", "static busybox")
	refresh := flag.Bool("refresh", false, "ask apt for a newer kernel")
	out := flag.String("o", "", "state directory of a daemon to install the image into")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir := filepath.Join(*cache, image.Builtin)
	err := image.Build(ctx, image.BuildOptions{Dir: dir, CacheDir: *cache, Agent: *agent,
		Busybox: *busybox, Refresh: *refresh})
	if err == nil && *out != "" {
		err = image.Install(dir, filepath.Join(*out, "images"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}
