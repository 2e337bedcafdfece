package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

const maxLinks = 40 // followed in one path, as the kernel does (path_resolution(7))

// place is one side of a copy, as it was typed.
type place struct {
	typed string
	vm    string // empty for the host
	root  string // of the guest's files, below the mount
	path  string
}

// place reads VM:PATH, or a path of the host: one without a colon, or with a slash before it.
func (c *client) place(typed string) (place, error) {
	vm, inside, ok := strings.Cut(typed, ":")
	if !ok || strings.Contains(vm, "/") {
		return place{typed: typed, path: typed}, nil
	}
	dir, err := c.tree().vm(vm)
	if err != nil {
		return place{}, err
	}
	p := place{typed: typed, vm: vm, root: filepath.Join(dir, "fs")}
	slash := strings.HasSuffix(inside, "/") || strings.HasSuffix(inside, "/.") || inside == ""
	if p.path, err = follow(p.root, inside, slash); err != nil {
		return place{}, p.explain(err)
	}
	if strings.HasSuffix(inside, "/.") {
		p.path += "/."
	}
	return p, nil
}

// follow resolves the symbolic links in a guest's path, as the guest would; the mount follows none. The last part is followed if last says so.
func follow(root, inside string, last bool) (string, error) {
	done, rest := "/", strings.Split(inside, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		next := path.Join(done, part) // `..` of the root is the root
		if part == ".." || len(rest) == 0 && !last {
			done = next
			continue
		}
		target, err := os.Readlink(root + next)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", syscall.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				done = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOENT):
			done = next
		default:
			return "", err
		}
	}
	return filepath.Join(root, done), nil
}

func (p place) explain(err error) error {
	if errors.Is(err, syscall.ENOENT) {
		return &failure{exitFailed, fmt.Errorf("there is no %s", p.typed)}
	}
	return explain("cannot use "+p.typed, "", err)
}

// base is the name that a copy into a directory gets; empty for a source whose contents are meant.
func (p place) base() string {
	if strings.HasSuffix(p.path, "/.") || p.path == "." {
		return ""
	}
	if b := filepath.Base(p.path); b != ".." && b != "/" && !(p.vm != "" && filepath.Clean(p.path) == p.root) {
		return b
	}
	return ""
}

// directory opens what is one, as typed, links followed.
func (p place) directory() (*os.File, error) {
	dir := p.path
	if p.vm != "" { // a link at its end
		rel := strings.TrimPrefix(p.path, p.root)
		var err error
		if dir, err = follow(p.root, rel, true); err != nil {
			return nil, err
		}
	}
	return open(dir, os.O_RDONLY|syscall.O_DIRECTORY)
}

// parent opens the directory that p is in.
func (p place) parent() (*os.File, error) {
	return open(filepath.Dir(strings.TrimRight(p.path, "/")), os.O_RDONLY|syscall.O_DIRECTORY)
}

func (c *client) copyPlaces(args []string) (src, dst place, err error) {
	if src, err = c.place(args[0]); err == nil {
		dst, err = c.place(args[1])
	}
	return src, dst, err
}

func (c *client) cpCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cp SRC DST", Short: "Copy files and directories from or to a guest, VM:PATH", Args: cobra.ExactArgs(2), ValidArgsFunction: c.completePlace,
		Long: "Copy files and directories; SRC, DST or both are VM:PATH. Into a directory that is there a copy gets the name of SRC, else that of DST;\nSRC that ends in /. means what is in it. Directories are copied with all that is in them. Modes and times are kept, symbolic links are copied\nas links. Owners are not kept, nor, on the host, setuid and setgid bits.",
		RunE: func(_ *cobra.Command, args []string) error {
			src, dst, err := c.copyPlaces(args)
			if err != nil {
				return err
			}
			return c.cp(src, dst)
		},
	}
	cmd.Flags().BoolP("recursive", "r", false, "directories too: that is so anyway")
	return cmd
}

func (c *client) cp(src, dst place) error {
	syscall.Umask(0) // modes are those of the source
	k := newCopier(c.std)
	k.toGuest = dst.vm != ""
	if src.base() == "" {
		return c.copyInside(k, src, dst)
	}
	from, err := src.parent()
	if err != nil {
		return src.explain(err)
	}
	defer from.Close()
	if _, err := lstatAt(from, src.base()); err != nil {
		return src.explain(err)
	}
	to, name := (*os.File)(nil), src.base()
	if to, err = dst.directory(); err != nil {
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) || strings.HasSuffix(dst.typed, "/") {
			return dst.explain(err)
		}
		name = dst.base()
		if to, err = dst.parent(); err != nil {
			return dst.explain(err)
		}
	}
	defer to.Close()
	end := k.progress()
	k.entry(from, src.base(), to, name, src.typed, nil, 0)
	err = k.result()
	end()
	return err
}

// copyInside makes a directory have what is in another. The destination is made if it is not there.
func (c *client) copyInside(k *copier, src, dst place) error {
	from, err := open(src.path, os.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return src.explain(err)
	}
	to, err := dst.directory()
	if errors.Is(err, syscall.ENOENT) && !k.dryRun {
		if err = os.Mkdir(dst.path, 0o755); err == nil {
			to, err = dst.directory()
		}
	}
	if err != nil && !(k.dryRun && errors.Is(err, syscall.ENOENT)) {
		from.Close()
		return dst.explain(err)
	}
	p := &dirPair{src: from, dst: to, path: strings.TrimSuffix(src.typed, "/.")}
	if err != nil {
		p.dst = nil
	}
	p.users.Store(1)
	if p.stat, err = lstatAt(from, "."); err != nil {
		from.Close()
		return src.explain(err)
	}
	end := k.progress()
	k.inside(p, 0)
	k.leave(p)
	err = k.result()
	end()
	return err
}

func (c *client) syncCmd() *cobra.Command {
	k := newCopier(c.std)
	cmd := &cobra.Command{
		Use: "sync SRC DST", Short: "Make a directory have what another has, one way, from or to a guest", Args: cobra.ExactArgs(2), ValidArgsFunction: c.completePlace,
		Long: "Make the directory DST have what is in the directory SRC; one of them, or both, is VM:PATH. Files of the same size and time are left alone.\nWhat only DST has stays, unless --delete is given.",
		RunE: func(_ *cobra.Command, args []string) error {
			src, dst, err := c.copyPlaces(args)
			if err != nil {
				return err
			}
			syscall.Umask(0)
			k.sync, k.toGuest = true, dst.vm != ""
			if err := c.copyInside(k, src, dst); err != nil {
				return err
			}
			fmt.Fprintf(c.std.out, "%d copied, %d removed, %d the same\n", k.copied.Load(), k.removed.Load(), k.files.Load()-k.copied.Load())
			return nil
		},
	}
	cmd.Flags().BoolVar(&k.remove, "delete", false, "remove what SRC has not")
	cmd.Flags().BoolVarP(&k.dryRun, "dry-run", "n", false, "only tell what would be done")
	cmd.Flags().BoolVar(&k.checksum, "checksum", false, "compare contents instead of times")
	return cmd
}

// completePlace offers VMs and leaves paths of the host to the shell.
func (c *client) completePlace(_ *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) >= 2 || strings.Contains(to, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var out []string
	for _, name := range c.tree().names() {
		if strings.HasPrefix(name, to) {
			out = append(out, name+":")
		}
	}
	return out, cobra.ShellCompDirectiveNoSpace
}
