package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func (c *client) cpCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cp SRC... DST", Short: "Copy files and directories from or to a guest, VM:PATH",
		Long: `Copy files and directories; SRC, DST or both are VM:PATH.
Several SRC are copied into the directory DST; if one fails, the others are still tried.
A copy into an existing directory has the name of SRC, any other that of DST. SRC/. stands for the
content of SRC. Directories are copied with their content, symbolic links as links. Modes and times
are kept; owners are not, nor, on the host, setuid and setgid bits.`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.completePlaces(0),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 {
				return c.cpInto(args[:len(args)-1], args[len(args)-1])
			}
			src, dst, err := c.places(args)
			if err != nil {
				return err
			}
			return newCopier(c.std).cp(src, dst)
		},
	}
	cmd.Flags().BoolP("recursive", "r", false, "for scripts: directories are always copied")
	return cmd
}

func (c *client) syncCmd() *cobra.Command {
	k := newCopier(c.std)
	k.sync = true
	cmd := &cobra.Command{
		Use:   "sync SRC DST",
		Short: "Make a directory equal to another, one way, from or to a guest",
		Long: `Copy the content of directory SRC to directory DST; SRC, DST or both are VM:PATH.
Files of the same size and time are skipped. What only DST has stays, unless --delete is set.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: c.completePlaces(2),
		RunE: func(_ *cobra.Command, args []string) error {
			src, dst, err := c.places(args)
			if err != nil {
				return err
			}
			if err := k.cpContent(src, dst); err != nil {
				return err
			}
			copied := k.copied.Load()
			fmt.Fprintf(c.std.out, "%d copied, %d removed, %d the same\n",
				copied, k.removed.Load(), k.seen.Load()-copied)
			return nil
		},
	}
	cmd.Flags().BoolVar(&k.remove, "delete", false, "remove what SRC does not have")
	cmd.Flags().BoolVarP(&k.dryRun, "dry-run", "n", false, "only print what would be done")
	cmd.Flags().BoolVar(&k.checksum, "checksum", false, "compare contents instead of times")
	return cmd
}

// cpInto copies several sources into a directory. It goes on after a failure and returns the first.
func (c *client) cpInto(sources []string, into string) error {
	dst, err := c.place(into)
	if err != nil {
		return err
	}
	dir, err := dst.directory()
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENOENT) {
		return failf(exitFailed, "%s is no directory: several files need one", into)
	}
	if err != nil {
		return dst.explain(err)
	}
	dir.Close()
	made := make(map[string]string) // sources by the names of their copies
	err = c.each(sources, func(typed string) error {
		src, err := c.place(typed)
		if err != nil {
			return err
		}
		name := src.base()
		if other := made[name]; other != "" && name != "" {
			return failf(exitFailed, "%s is not copied: %s has that name, too", typed, other)
		}
		made[name] = typed
		return newCopier(c.std).cp(src, dst)
	})
	if err != nil {
		return &failure{exitFailed, err}
	}
	return nil
}

// cp copies src into the directory dst, or to the name dst.
func (c *copier) cp(src, dst place) error {
	if src.base() == "" {
		return c.cpContent(src, dst)
	}
	from, err := src.parent()
	if err != nil {
		return src.explain(err)
	}
	name := src.base()
	if _, err := lstatAt(from, name); err != nil {
		from.Close()
		return src.explain(err)
	}
	to, err := dst.directory()
	noDir := errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR)
	if noDir && !strings.HasSuffix(dst.typed, "/") {
		name = dst.base()
		to, err = dst.parent()
	}
	if err != nil {
		from.Close()
		return dst.explain(err)
	}
	return c.run(&dirPair{src: from, dst: to}, dst, func(top *dirPair) {
		defer c.leave(top)
		c.entry(top, src.base(), name, src.typed)
	})
}

// cpContent copies the content of the directory src to the directory dst, which it makes if needed.
func (c *copier) cpContent(src, dst place) error {
	from, err := open(src.path, os.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return src.explain(err)
	}
	st, err := lstatAt(from, ".")
	if err != nil {
		from.Close()
		return src.explain(err)
	}
	to, err := dst.directory()
	if errors.Is(err, syscall.ENOENT) && !c.dryRun {
		if err = os.Mkdir(dst.path, 0o755); err == nil {
			to, err = dst.directory()
		}
	}
	if err != nil && !(c.dryRun && errors.Is(err, syscall.ENOENT)) {
		from.Close()
		return dst.explain(err)
	}
	top := &dirPair{src: from, dst: to, path: strings.TrimSuffix(src.typed, "/."), stat: &st}
	return c.run(top, dst, c.content)
}
