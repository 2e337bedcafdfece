package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/sources"
)

// imageLook is how often the progress of a build is looked at.
const imageLook = 200 * time.Millisecond

func (c *client) imageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "List, make and remove what VMs are made from",
		Long: "List, make and remove what VMs are made from: the directories of `images/`, see banger(5).\n\n" + sources.Help(),
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "ls", Short: "List the images: name, status, bytes, source", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(*cobra.Command, []string) error { return c.imageList() },
		},
		&cobra.Command{
			Use: "pull SOURCE [NAME]", Short: "Make an image from a source, and wait until it is ready", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: cobra.NoFileCompletions,
			Long: "Make an image from a source, and wait until it is ready. One of that name and source that is ready is made anew.\nCtrl-C leaves it being built.\n\n" + sources.Help(),
			RunE: func(_ *cobra.Command, args []string) error {
				name := imageName(args[0])
				if len(args) == 2 {
					name = args[1]
				}
				if err := c.tree().check(); err != nil {
					return err
				}
				if err := c.makeImage(name, args[0], true); err != nil {
					return err
				}
				fmt.Fprintln(c.std.out, name)
				return nil
			},
		},
		&cobra.Command{
			Use: "rm NAME...", Short: "Delete images that no VM has; ends those that are being built", Args: cobra.MinimumNArgs(1), ValidArgsFunction: c.completeImages,
			RunE: func(_ *cobra.Command, args []string) error {
				if err := c.tree().check(); err != nil {
					return err
				}
				return c.eachOf(args, func(name string) error {
					if isSource(name) || name == "." || name == ".." || name == "" {
						return &failure{exitUsage, fmt.Errorf("%q is no name of an image", name)}
					}
					if _, err := os.Stat(c.image(name)); errors.Is(err, fs.ErrNotExist) {
						return &failure{exitFailed, fmt.Errorf("no image is called %s", name)}
					}
					return explain("cannot remove image "+name, c.tree().top("error"), syscall.Rmdir(c.image(name)))
				})
			},
		},
		&cobra.Command{
			Use: "gc", Short: "Remove layers and root disks that no image needs", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(*cobra.Command, []string) error {
				if err := c.tree().check(); err != nil {
					return err
				}
				return explain("cannot collect", c.tree().top("error"), write(c.tree().top("blobs"), "gc\n"))
			},
		},
	)
	return cmd
}

func (c *client) image(name string) string { return filepath.Join(c.tree().top("images"), name) }

func (c *client) imageList() error {
	if err := c.tree().check(); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.tree().top("images"))
	if err != nil {
		return explain("cannot list the images", "", err)
	}
	w := tabwriter.NewWriter(c.std.out, 0, 8, 2, ' ', 0)
	for _, e := range entries {
		row := []string{e.Name()}
		for _, file := range []string{"status", "size", "source"} {
			text, err := read(filepath.Join(c.image(e.Name()), file))
			if text = strings.TrimSpace(text); err != nil || text == "" {
				text = "-"
			}
			if file == "status" {
				text, _, _ = strings.Cut(text, " ") // the reason of a failure is for those who ask for it
			}
			row = append(row, text)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// isSource tells a source from the name of an image, which has neither a colon nor a slash.
func isSource(s string) bool { return strings.ContainsAny(s, ":/") }

// imageName makes the name of an image from a source: a DNS label of what tells it from others, such as debian-bookworm.
func imageName(source string) string {
	name := source
	if _, path, ok := sources.CutPath(source); ok {
		name = filepath.Base(path)
		for _, end := range []string{".gz", ".zst", ".tar", ".qcow2", ".raw"} {
			name = strings.TrimSuffix(name, end)
		}
	} else if at := strings.LastIndexByte(source, '/'); at >= 0 {
		name = source[at+1:]
	}
	var label strings.Builder
	for _, r := range strings.ToLower(name) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			r = '-'
		}
		label.WriteRune(r)
	}
	name = strings.Trim(label.String(), "-")
	if name = strings.Trim(name[:min(len(name), 63)], "-"); name == "" {
		name = "image"
	}
	return name
}

// makeImage makes an image of that name from the source and waits until it is ready. One that was made, or is being made, from the same source will
// do unless it is to be made again.
func (c *client) makeImage(name, source string, again bool) error {
	dir := c.image(name)
	source = absoluteSource(source)
	begin := true
	if err := os.Mkdir(dir, 0o777); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return explain("cannot create image "+name, c.tree().top("error"), err)
		}
		was, _ := read(filepath.Join(dir, "source"))
		status, err := read(filepath.Join(dir, "status"))
		if err != nil {
			return explain("cannot look at image "+name, "", err)
		}
		word, _, _ := strings.Cut(strings.TrimSpace(status), " ")
		if was = strings.TrimSpace(was); was != source && was != "" {
			return &failure{exitFailed, fmt.Errorf("image %s is there already, made from %s; `banger image pull %s NAME` makes one of another name", name, was, source)}
		}
		begin = word == "failed" || word == "empty" || again && word == "ready"
	}
	if begin {
		if err := write(filepath.Join(dir, "source"), source+"\n"); err != nil {
			return explain("cannot make image "+name, filepath.Join(dir, "error"), err)
		}
	}
	return c.waitImage(name, dir)
}

// absoluteSource makes a relative path one that means the same to whoever reads it.
func absoluteSource(source string) string {
	if word, path, ok := sources.CutPath(source); ok {
		if abs, err := filepath.Abs(path); err == nil {
			return word + ":" + abs
		}
	}
	return source
}

// waitImage shows the progress of a build on the standard error until it has ended.
func (c *client) waitImage(name, dir string) error {
	done := make(chan error, 1)
	go func() {
		_, err := read(filepath.Join(dir, "wait", "ready"))
		done <- err
	}()
	screen, onTerminal := terminal(c.std.err)
	ticker := time.NewTicker(imageLook)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case err := <-done:
			if onTerminal {
				fmt.Fprint(screen, "\r\x1b[K")
			}
			if err == nil {
				return nil
			}
			if status, rerr := read(filepath.Join(dir, "status")); rerr == nil && strings.HasPrefix(status, "failed ") {
				return &failure{exitFailed, fmt.Errorf("cannot make image %s: %s", name, strings.TrimSpace(strings.TrimPrefix(status, "failed ")))}
			}
			return explain("cannot make image "+name, "", err)
		case <-ticker.C:
			status, err := read(filepath.Join(dir, "status"))
			if status = strings.TrimSpace(status); err != nil || status == said || !strings.HasPrefix(status, "building") {
				continue
			}
			if said = status; onTerminal {
				fmt.Fprintf(screen, "\rimage %s: %s%%\x1b[K", name, status)
			} else {
				fmt.Fprintf(c.std.err, "image %s: %s%%\n", name, status)
			}
		}
	}
}

func (c *client) completeImages(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	entries, _ := os.ReadDir(c.tree().top("images"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
