package rootfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	maxIndexing  = 3   // indexes of indexes
	maxManifests = 128 // manifests and configurations that are read to find an image
	maxListed    = 8   // things that one sentence lists
)

// ErrAbsent is the error of a blob that a source does not have.
var ErrAbsent = errors.New("it is not there")

// Source is where images are: an archive or a registry. Its methods return at most MaxJSON bytes,
// whose digest Choose checks, or ErrAbsent.
type Source interface {
	Manifest(ctx context.Context, d *v1.Descriptor) ([]byte, error)
	Blob(ctx context.Context, d *v1.Descriptor) ([]byte, error)
}

// Choice is the image that was found in a source.
type Choice struct {
	Digest   string // of its manifest
	Manifest *v1.Manifest
	Config   *Config
}

// Choose finds the one image for Platform below a descriptor, whose content is text. digest is that
// of a manifest or an index by which the user chose, or empty; how tells people to write one.
//
// Images are counted, not descriptors: one image may have several names, and manifests of the same
// configuration are one image. Signatures, SBOMs and other artifacts (image-spec, manifest.md) do
// not count. Of several variants of the architecture the least demanding is taken, as that runs on
// every host.
func Choose(ctx context.Context, src Source, d v1.Descriptor, text []byte,
	digest, how string) (*Choice, error) {
	f := &finder{src: src, seen: map[string]bool{}}
	f.digest = digest
	if err := f.content(ctx, &d, text, digest == "" || d.Digest.String() == digest, 0); err != nil {
		return nil, err
	}
	c, err := f.one(how)
	if err != nil {
		return nil, err
	}
	if c.config == nil {
		if c.config, err = f.config(ctx, c.manifest); err != nil {
			return nil, fmt.Errorf("cannot read its configuration: %w", err)
		}
	}
	return &Choice{Digest: c.digest, Manifest: c.manifest, Config: c.config}, nil
}

// candidate is an image for Platform.
type candidate struct {
	digest   string // of its manifest, or of its configuration if it has no manifest
	id       string // the digest of its configuration
	tags     []string
	rank     int // of its variant, the least demanding first
	manifest *v1.Manifest
	config   *Config // nil if it was not needed yet
}

// finder walks through the descriptors of a source.
type finder struct {
	candidates

	src   Source
	reads int
	seen  map[string]bool // the digests of all descriptors so far
}

// list goes through an index.
func (f *finder) list(ctx context.Context, text []byte, chosen bool, depth int) error {
	if depth > maxIndexing {
		return fmt.Errorf("it has indexes of indexes, more than %d deep", maxIndexing)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("its index cannot be read: %w", err)
	}
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if err := f.descriptor(ctx, d, chosen || d.Digest.String() == f.digest, depth); err != nil {
			return err
		}
	}
	return nil
}

// descriptor looks at one descriptor of an index. It reads no content that cannot matter.
func (f *finder) descriptor(ctx context.Context, d *v1.Descriptor,
	chosen bool, depth int) error {
	digest, tag := d.Digest.String(), d.Annotations["org.opencontainers.image.ref.name"]
	if f.again(digest, tag) || f.seen[digest] {
		return nil
	}
	index := d.MediaType.IsIndex()
	switch rank, known := rankOf(d.Platform); {
	case artifact(d):
		f.artifacts++
	case known && rank < 0:
		f.elsewhere(platformText(d.Platform))
	case d.MediaType.IsSchema1():
		f.schema1 = true
	case !index && !d.MediaType.IsImage() && d.MediaType != "":
		f.artifacts++
	case !chosen && !index:
		f.unchosen++
	default:
		text, err := f.read(ctx, f.src.Manifest, d)
		if errors.Is(err, ErrAbsent) {
			f.absent = append(f.absent, digest)
			break
		}
		if err == nil {
			err = f.content(ctx, d, text, chosen, depth+1)
		}
		if err != nil {
			return err
		}
	}
	f.seen[digest] = true
	return nil
}

// content looks at the content of a descriptor, whose media type a registry may have forgotten.
func (f *finder) content(ctx context.Context, d *v1.Descriptor, text []byte,
	chosen bool, depth int) error {
	var shape struct {
		SchemaVersion int
		MediaType     types.MediaType
		Manifests     json.RawMessage
	}
	if err := json.Unmarshal(text, &shape); err != nil {
		return fmt.Errorf("its manifest cannot be read: %w", err)
	}
	switch {
	case d.MediaType.IsSchema1() || shape.SchemaVersion == 1:
		f.schema1 = true
		return nil
	case d.MediaType.IsIndex() || shape.MediaType.IsIndex() ||
		!d.MediaType.IsImage() && shape.Manifests != nil:
		return f.list(ctx, text, chosen, depth)
	case !chosen:
		f.unchosen++
		return nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("its manifest cannot be read: %w", err)
	}
	if what := notImage(m); what != "" {
		f.artifacts, f.artifact = f.artifacts+1, what
		return nil
	}
	c := candidate{digest: d.Digest.String(), id: m.Config.Digest.String(), manifest: m}
	rank, known := rankOf(d.Platform)
	if !known {
		if c.config, err = f.config(ctx, m); errors.Is(err, ErrAbsent) {
			f.absent = append(f.absent, c.id)
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot read its configuration: %w", err)
		}
		p := c.config.platform()
		if rank, known = rankOf(p); known && rank < 0 {
			f.elsewhere(platformText(p))
			return nil
		}
	}
	c.rank = max(0, rank)
	f.add(c, d.Annotations["org.opencontainers.image.ref.name"])
	return nil
}

func (f *finder) config(ctx context.Context, m *v1.Manifest) (*Config, error) {
	text, err := f.read(ctx, f.src.Blob, &m.Config)
	if err != nil {
		return nil, err
	}
	return ParseConfig(text)
}

// read counts what is read, and checks its digest.
func (f *finder) read(ctx context.Context,
	from func(context.Context, *v1.Descriptor) ([]byte, error), d *v1.Descriptor) ([]byte, error) {
	if f.reads++; f.reads > maxManifests {
		return nil, fmt.Errorf("more than %d manifests would have to be read to find its image",
			maxManifests)
	}
	if d.Size > MaxJSON {
		return nil, fmt.Errorf("%s has %d bytes, %d are allowed", d.Digest, d.Size, MaxJSON)
	}
	text, err := from(ctx, d)
	if err != nil {
		return nil, err
	}
	if got := Sum(text); got != d.Digest.String() {
		return nil, fmt.Errorf("%w: %s has the digest %s", ErrDamaged, d.Digest, got)
	}
	return text, nil
}

// candidates are the images that fit, and what else was seen.
type candidates struct {
	digest    string // that the user wants, or empty
	all       []candidate
	others    []string // platforms
	more      int      // further platforms
	absent    []string // digests
	artifacts int      // signatures and the like
	artifact  string   // what the last of them is
	unchosen  int      // images with another digest than the user's
	schema1   bool
}

// again adds a tag to a candidate of that digest. It reports whether there is one.
func (f *candidates) again(digest, tag string) bool {
	n := slices.IndexFunc(f.all, func(c candidate) bool { return c.digest == digest })
	if n >= 0 {
		f.all[n].tag(tag)
	}
	return n >= 0
}

// add adds a candidate, unless one has the same configuration and so the same content.
func (f *candidates) add(c candidate, tags ...string) {
	n := slices.IndexFunc(f.all, func(o candidate) bool { return o.id == c.id })
	if n < 0 {
		n = len(f.all)
		f.all = append(f.all, c)
	}
	for _, t := range tags {
		f.all[n].tag(t)
	}
	f.all[n].rank = min(f.all[n].rank, c.rank)
}

func (c *candidate) tag(tag string) {
	if tag != "" && len(c.tags) < maxListed && !slices.Contains(c.tags, tag) {
		c.tags = append(c.tags, tag)
	}
}

func (f *candidates) elsewhere(platform string) {
	switch {
	case slices.Contains(f.others, platform):
	case len(f.others) < maxListed:
		f.others = append(f.others, platform)
	default:
		f.more++
	}
}

// one returns the only candidate of the least demanding variant. The error lists what there is.
func (f *candidates) one(how string) (*candidate, error) {
	if len(f.all) == 0 {
		return nil, f.none()
	}
	best := slices.MinFunc(f.all, func(a, b candidate) int { return a.rank - b.rank })
	var fit []candidate
	for _, c := range f.all {
		if c.rank == best.rank {
			fit = append(fit, c)
		}
	}
	if len(fit) == 1 {
		return &fit[0], nil
	}
	var list []string
	for _, c := range fit[:min(len(fit), maxListed)] {
		text := c.digest
		if len(c.tags) > 0 {
			text += fmt.Sprintf(" (%.200q)", strings.Join(c.tags, ", "))
		}
		list = append(list, text)
	}
	if len(fit) > len(list) {
		list = append(list, fmt.Sprintf("and %d more", len(fit)-len(list)))
	}
	return nil, fmt.Errorf("it has %d images for %s; choose one, %s: %s",
		len(fit), Platform.String(), how, strings.Join(list, ", "))
}

// none returns the error of a source without an image that fits.
func (f *candidates) none() error {
	var has []string
	if len(f.others) > 0 {
		list := strings.Join(f.others, ", ")
		if f.more > 0 {
			list += fmt.Sprintf(" and %d more", f.more)
		}
		has = append(has, "images for "+list)
	}
	if f.unchosen > 0 {
		has = append(has, fmt.Sprintf("%d of other digests", f.unchosen))
	}
	if len(f.absent) > 0 {
		has = append(has, fmt.Sprintf("%d whose files are missing, %s first",
			len(f.absent), f.absent[0]))
	}
	if f.schema1 {
		has = append(has, "a manifest of schema 1, as docker wrote before 2017: "+
			"pull and push it with a newer docker")
	}
	if f.artifacts > 0 {
		text := "1 artifact that is no image"
		if f.artifacts > 1 {
			text = fmt.Sprintf("%d artifacts that are no images", f.artifacts)
		}
		if f.artifact != "" {
			text += fmt.Sprintf(" (%.100q)", f.artifact)
		}
		has = append(has, text)
	}
	if len(has) == 0 {
		has = append(has, "nothing else")
	}
	which := "for " + Platform.String()
	if f.digest != "" {
		which = fmt.Sprintf("%s %s", f.digest, which)
	}
	return fmt.Errorf("it has no image %s; it has %s", which, strings.Join(has, "; "))
}
