package image

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"banger/internal/sources"
	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// source is a parsed `source`: its kind and the text behind the kind's word.
type source struct {
	kind *sourceKind
	text string // as written
	arg  string
	// digest is that of the image that is meant, of several in an archive; empty if not written.
	digest string
}

// sourceKind is one way to make an image. A path is opened with the rights of who wrote the source:
// job.local.
type sourceKind struct {
	sources.Kind
	// check refuses an impossible arg without looking at the host; may be nil.
	check func(arg string) error
	// plan determines the inputs of the image. It may read, fetch and verify.
	plan func(ctx context.Context, j *job) (*plan, error)
	// archive: a digest may follow the path and an @.
	archive bool
	// alone: the image is made without the built-in one.
	alone bool
}

// plan is a build whose inputs are known.
type plan struct {
	key  string // digest of all inputs; images of the same key share their files
	make func(ctx context.Context, dir string) (*manifest, error)
	done func() // releases the inputs, may be nil
}

// sourceKinds holds the kinds in the order in which they are tried. The kind without a word is
// last.
var sourceKinds []sourceKind

func init() {
	// By the word of the kind.
	ways := map[string]sourceKind{
		"builtin":        {check: noArg, plan: planBuiltin},
		"debian":         {check: rootfs.CheckSuite, plan: planDebian},
		"disk":           {plan: planDisk, alone: true},
		"host":           {check: noArg, plan: planHost, alone: true},
		"oci":            {plan: planOCI, archive: true},
		"docker-archive": {plan: planDockerArchive, archive: true},
		"rootfs":         {plan: planRootfs},
		"":               {check: checkRegistry, plan: planRegistry},
	}
	for _, k := range sources.Kinds {
		way := ways[k.Word]
		way.Kind = k
		sourceKinds = append(sourceKinds, way)
	}
}

// withDigest matches a path and the digest of an image in the archive there.
var withDigest = regexp.MustCompile(`^(.+)@(sha256:[0-9a-f]{64})$`)

func noArg(arg string) error {
	if arg != "" {
		return fmt.Errorf("nothing may follow the word: %w", vmm.ErrInvalid)
	}
	return nil
}

// parseSource parses the text of `source`. Its error is ErrInvalid.
func parseSource(text string) (source, error) {
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return source{}, fmt.Errorf("a source is one line of printable characters: %w", vmm.ErrInvalid)
	}
	for i := range sourceKinds {
		k := &sourceKinds[i]
		word, arg, colon := strings.Cut(text, ":")
		if k.Word == "" {
			if arg = text; k.check(arg) != nil {
				continue // the error below lists all kinds
			}
		} else if word != k.Word || colon == (k.Word == k.Form) {
			continue
		}
		if (k.Path || k.check == nil) && arg == "" {
			return source{}, fmt.Errorf("%.200q lacks what follows the colon, as in %s: %w",
				text, k.Form, vmm.ErrInvalid)
		}
		if k.check != nil {
			if err := k.check(arg); err != nil {
				return source{}, fmt.Errorf("%.200q is no source, as %s is: %w", text, k.Form, err)
			}
		}
		s := source{kind: k, text: text, arg: arg}
		if m := withDigest.FindStringSubmatch(arg); m != nil && k.archive {
			s.arg, s.digest = m[1], m[2]
		}
		return s, nil
	}
	var forms []string
	for _, k := range sourceKinds {
		forms = append(forms, k.Form)
	}
	return source{}, fmt.Errorf("%.200q is no source; write one of %s: %w",
		text, strings.Join(forms, ", "), vmm.ErrInvalid)
}
