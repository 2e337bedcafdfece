package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/sources"
)

func (c *client) imageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "List, make and remove images, which VMs boot",
		Long: "List, make and remove images, the directories of `images/`, see banger(5).\n\n" +
			sources.Help(),
		Args: cobra.ArbitraryArgs, RunE: ofGroup, ValidArgsFunction: cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(
		c.imageLsCmd(),
		&cobra.Command{
			Use:   "pull SOURCE [NAME]",
			Short: "Make an image from a source, and wait until it is ready",
			Long: `Make an image from a source, and wait until it is ready.
An image of that name and source is made again. Ctrl-C ends the wait only, not the making.

` + sources.Help(),
			Args: cobra.RangeArgs(1, 2), ValidArgsFunction: cobra.NoFileCompletions,
			RunE: c.onTree(func(args []string) error {
				name := imageName(args[0])
				if len(args) == 2 {
					name = args[1]
				}
				if err := c.makeImage(name, args[0], true); err != nil {
					return err
				}
				fmt.Fprintln(c.std.out, name)
				return nil
			}),
		},
		&cobra.Command{
			Use:   "builtin [host]",
			Short: "Make or refresh the image that VMs boot unless they name another",
			Long: `Make or refresh the image that VMs boot unless they name another, and wait until it is ready.
It is made of this banger's agent, a static busybox of the host, and a kernel: Debian's for clouds,
which apt-get fetches. With "host", and where apt has none, it is the kernel that this host runs.
VMs that run go on as they are and boot the new image at their next start.`,
			Args: cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs), ValidArgs: []string{"host"},
			RunE: c.onTree(func(args []string) error { return c.makeBuiltin(args) }),
		},
		&cobra.Command{
			Use:   "rm NAME...",
			Short: "Remove images that no VM has; stop those that are being made",
			Args:  cobra.MinimumNArgs(1), ValidArgsFunction: c.completeImages,
			RunE: c.onTree(func(args []string) error { return c.each(args, c.removeImage) }),
		},
		&cobra.Command{
			Use: "gc", Short: "Remove layers and root disks that no image needs",
			Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
			RunE: c.onTree(func([]string) error {
				err := write(c.tree.file("blobs"), "gc\n")
				return explain("cannot remove unused layers and disks", c.tree.file("error"), err)
			}),
		},
	)
	return cmd
}

func (c *client) image(name string) string { return c.tree.file("images/" + name) }

func (c *client) removeImage(name string) error {
	if isSource(name) || !isName(name) {
		return failf(exitUsage, "%q is no name of an image", name)
	}
	if _, err := os.Stat(c.image(name)); errors.Is(err, fs.ErrNotExist) {
		return failf(exitFailed, "no image is called %s%s",
			name, didYouMean(name, c.tree.names("images")))
	}
	return explain("cannot remove image "+name, c.tree.file("error"), syscall.Rmdir(c.image(name)))
}

func (c *client) imageLsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls", Short: "List the images: name, status, size, source",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
	}
	looks := c.lookFlags(cmd)
	cmd.RunE = c.onTree(func([]string) error {
		entries, err := os.ReadDir(c.tree.file("images"))
		if err != nil {
			return explain("cannot list the images", "", err)
		}
		rows := make([][]string, len(entries))
		for i, e := range entries {
			fact := func(name string) string {
				text, _ := readTrimmed(filepath.Join(c.image(e.Name()), name))
				return cmp.Or(text, "-")
			}
			status, _, _ := strings.Cut(fact("status"), " ") // without the reason of a failure
			rows[i] = []string{e.Name(), status, fact("size"), fact("source")}
		}
		return c.print(looks().table([]column{{head: "NAME"}, {head: "STATUS", state: true},
			{head: "SIZE", bytes: true}, {head: "SOURCE"}}, rows))
	})
	return cmd
}

// isSource reports whether s is a source. The name of an image has neither a colon nor a slash.
func isSource(s string) bool { return strings.ContainsAny(s, ":/") }

// imageName returns a name for an image of a source: a DNS label such as debian-bookworm.
func imageName(source string) string {
	name := source
	if _, file, ok := sources.CutPath(source); ok {
		file, _, _ = strings.Cut(file, "@sha256:")
		name = filepath.Base(file)
		for _, end := range []string{".gz", ".zst", ".tar", ".qcow2", ".raw"} {
			name = strings.TrimSuffix(name, end)
		}
	} else {
		name = path.Base(name)
	}
	name = strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '-'
		}
		return r
	}, strings.ToLower(name))
	name = strings.Trim(name, "-")
	return cmp.Or(strings.Trim(name[:min(len(name), 63)], "-"), "image")
}

// makeImage makes an image from a source and waits until it is ready. It uses an existing image of
// the same source unless again is set.
func (c *client) makeImage(name, source string, again bool) error {
	dir := c.image(name)
	source = absoluteSource(source)
	begin := true
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return explain("cannot create image "+name, c.tree.file("error"), err)
	} else if err != nil {
		status, err := readTrimmed(filepath.Join(dir, "status"))
		if err != nil {
			return explain("cannot read the status of image "+name, "", err)
		}
		old, _ := readTrimmed(filepath.Join(dir, "source"))
		if old != source && old != "" {
			return failf(exitFailed, "image %s exists, made from %s; "+
				"`banger image pull %s NAME` makes one of another name", name, old, source)
		}
		word, _, _ := strings.Cut(status, " ")
		begin = word == "failed" || word == "empty" || again && word == "ready"
	}
	if begin {
		return c.buildImage(name, source)
	}
	return c.waitImage(name, dir)
}

// buildImage makes an image that is there from a source and waits until it is ready.
func (c *client) buildImage(name, source string) error {
	dir := c.image(name)
	if err := write(filepath.Join(dir, "source"), source+"\n"); err != nil {
		return explain("cannot make image "+name, filepath.Join(dir, "error"), err)
	}
	return c.waitImage(name, dir)
}

// makeBuiltin makes the built-in image, anew if it is there, and waits until it is ready.
func (c *client) makeBuiltin(args []string) error {
	const name = "builtin"
	source := name
	if len(args) == 1 {
		source = args[0]
	}
	if err := os.Mkdir(c.image(name), 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return explain("cannot create image "+name, c.tree.file("error"), err)
	}
	if err := c.buildImage(name, source); err != nil {
		return err
	}
	fmt.Fprintln(c.std.out, name)
	return nil
}

// absoluteSource makes the path in a source absolute: the daemon has another working directory.
func absoluteSource(source string) string {
	if word, file, ok := sources.CutPath(source); ok {
		if abs, err := filepath.Abs(file); err == nil {
			return word + ":" + abs
		}
	}
	return source
}

// waitImage waits until a build has ended and shows its progress on the standard error.
func (c *client) waitImage(name, dir string) error {
	screen, onTerminal := terminal(c.std.err)
	line, rate := progress{screen: screen}, transferRate{}
	var shown time.Time
	_, err := readTicking(filepath.Join(dir, "wait", "ready"), 0, func() {
		text, err := read(filepath.Join(dir, "progress"))
		if err != nil || text == "" {
			return
		}
		done := rate.line(text, time.Now())
		if onTerminal {
			line.show("image %s: %s", name, done)
		} else if time.Since(shown) >= linePace {
			fmt.Fprintf(c.std.err, "image %s: %s\n", name, done)
			shown = time.Now()
		}
	})
	line.clear()
	if err == nil {
		return nil
	}
	status, _ := readTrimmed(filepath.Join(dir, "status"))
	if reason, failed := strings.CutPrefix(status, "failed "); failed {
		return failf(exitFailed, "cannot make image %s: %s", name, reason)
	}
	return explain("cannot make image "+name, "", err)
}

func (c *client) completeImages(*cobra.Command, []string, string) ([]string, directive) {
	return c.tree.names("images"), cobra.ShellCompDirectiveNoFileComp
}
