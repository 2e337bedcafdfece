// Package sources lists the kinds of an image's sources, as a user writes them to the file
// `source`. It is a leaf: the daemon, which builds images, and the command line, which uses files
// only, share its table.
package sources

import (
	"fmt"
	"strings"
)

// Kind is one kind of source.
type Kind struct {
	Word string // before the colon, or all of it; empty for an image of a registry
	Form string // for people
	Doc  string // for people, too
	Path bool   // a path of the host follows the colon
}

// Kinds are all kinds, in the order in which help shows them. An image of a registry is the last.
var Kinds = []Kind{
	{"builtin", "builtin", "the built-in image: Debian's kernel, busybox and the agent", false},
	{"host", "host", "the same with the kernel that this host runs", false},
	{"debian", "debian:SUITE", "a Debian, e.g. debian:bookworm", false},
	{"disk", "disk:PATH.qcow2", "a qcow2 or raw disk that boots by itself, a cloud image", true},
	{"oci", "oci:PATH", "an OCI image layout, a directory or a tar of one", true},
	{"docker-archive", "docker-archive:PATH", "what docker save writes", true},
	{"rootfs", "rootfs:PATH.tar", "a tar of a root file system", true},
	{"", "REGISTRY/NAME:TAG", "an image of a registry", false},
}

// Help returns the kinds as lines of help.
func Help() string {
	width := 0
	for _, k := range Kinds {
		width = max(width, len(k.Form))
	}
	var b strings.Builder
	b.WriteString("A source is one of")
	for _, k := range Kinds {
		fmt.Fprintf(&b, "\n  %-*s  %s", width, k.Form, k.Doc)
	}
	return b.String()
}

// CutPath splits a source into its word and the path that it names; false if it names none.
func CutPath(source string) (word, path string, ok bool) {
	word, path, _ = strings.Cut(source, ":")
	for _, k := range Kinds {
		if k.Path && k.Word == word {
			return word, path, true
		}
	}
	return "", "", false
}
