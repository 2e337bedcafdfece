package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (c *client) runCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run NAME", Short: "Create a VM, start it and wait until it is healthy",
		Long: "Create a VM, start it and wait until it is healthy.\n" +
			"A VM that fails is kept for its files `error`, `log` and `console`.\n" +
			"`banger rm -f NAME` removes it.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	image := flags.StringP("image", "i", "",
		"image to boot, or a source such as debian:bookworm (default: the daemon's image)")
	flags.IntP("cpus", "c", 1, "number of CPUs")
	flags.StringP("memory", "m", "", "memory, e.g. 192M (default: the image's)")
	publish := flags.StringArrayP("publish", "p", nil,
		"forward a port of the host to the guest, [HOST:]PORT:GUESTPORT[/PROTO]; may be repeated")
	timeout := flags.Duration("timeout", time.Minute, "stop waiting after this time (0: never)")
	_ = cmd.RegisterFlagCompletionFunc("image", c.completeImages)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		v, err := c.tree.newVM(args[0])
		if err != nil {
			return err
		}
		if source := *image; isSource(source) {
			*image = imageName(source)
			if err := c.makeImage(*image, source, false); err != nil {
				return err
			}
		}
		if err := c.createVM(v, *publish); err != nil {
			return err
		}
		var settings strings.Builder
		for _, name := range []string{"image", "cpus", "memory"} {
			if flags.Changed(name) {
				settings.WriteString(name + " " + flags.Lookup(name).Value.String() + "\n")
			}
		}
		return c.boot(v, settings.String(), *timeout)
	}
	return cmd
}

// createVM makes a VM with published ports.
func (c *client) createVM(v vm, publish []string) error {
	if err := os.Mkdir(v.dir, 0o777); errors.Is(err, fs.ErrExist) {
		return failf(exitFailed, "%s exists already; `banger start %[1]s` starts it", v.name)
	} else if err != nil {
		return explain("cannot create "+v.name, c.tree.file("error"), err)
	}
	if len(publish) == 0 {
		return nil
	}
	err := write(v.file("publish"), strings.Join(publish, "\n")+"\n")
	return v.explain("cannot publish ports of "+v.name, err)
}

// boot configures a new VM, starts it and waits until it is healthy.
func (c *client) boot(v vm, settings string, timeout time.Duration) error {
	if settings != "" {
		err := write(v.file("config"), settings)
		if err := v.explain("cannot configure "+v.name, err); err != nil {
			return err
		}
	}
	screen, onTerminal := terminal(c.std.err)
	line := progress{screen: screen}
	var tick func()
	if began := time.Now(); onTerminal {
		tick = func() { line.show("%s is booting, %.1f s", v.name, time.Since(began).Seconds()) }
	}
	if err := v.command("start"); err != nil {
		return err
	}
	took, err := v.wait("healthy", timeout, tick)
	line.clear()
	if err != nil {
		return err
	}
	healthy := v.name + " is healthy after " + took + " s"
	if address, err := readTrimmed(v.file("address")); err == nil && address != "" {
		healthy += " at " + address
	}
	fmt.Fprintln(c.std.out, healthy)
	return nil
}
