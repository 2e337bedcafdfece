package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// MaxLayers bounds the layers of an image.
	MaxLayers = 512
	// MaxJSON bounds an index, a manifest and a configuration, in bytes.
	MaxJSON = 4 << 20
)

// Image is the image of a container: its configuration and its layers, the lowest first.
type Image struct {
	Digest string // of its manifest, or of its configuration if it has no manifest
	Config *Config
	Layers []*Layer
}

// Check refuses an image for another platform and one whose configuration does not fit its layers.
// It sets the layers' DiffIDs.
func (i *Image) Check() error {
	p := i.Config.platform()
	if rank, _ := rankOf(p); rank < 0 {
		return fmt.Errorf("it is for %s, this host needs %s", platformText(p), Platform.String())
	}
	if len(i.Layers) == 0 || len(i.Layers) > MaxLayers {
		return fmt.Errorf("it has %d layers, 1 to %d are possible", len(i.Layers), MaxLayers)
	}
	ids := i.Config.RootFS.DiffIDs
	if len(ids) != len(i.Layers) {
		return fmt.Errorf("its configuration lists %d layers, it has %d", len(ids), len(i.Layers))
	}
	for n, l := range i.Layers {
		l.DiffID = ids[n].String()
	}
	return nil
}

// HowChosen tells people how to choose one of the images of an archive.
const HowChosen = "as PATH@DIGEST"

// OCI returns the image of an OCI image layout (image-spec, image-layout.md). digest chooses it,
// see Choose.
func (a *Archive) OCI(ctx context.Context, digest string) (*Image, error) {
	index, err := a.read("index.json")
	if err != nil {
		return nil, fmt.Errorf("not an OCI image layout: %w", err)
	}
	top := v1.Descriptor{MediaType: types.OCIImageIndex}
	c, err := Choose(ctx, a, top, index, digest, HowChosen)
	if err != nil {
		return nil, err
	}
	i := &Image{Digest: c.Digest, Config: c.Config}
	for _, d := range c.Manifest.Layers {
		l, err := a.layer(blobPath(d.Digest), d.Digest.String())
		if err != nil {
			return nil, err
		}
		i.Layers = append(i.Layers, l)
	}
	return i, nil
}

// Docker returns the image of an archive of `docker save`. Its manifest.json names the
// configurations and the layers. digest chooses an image by its configuration, as `docker images
// --no-trunc` shows it.
func (a *Archive) Docker(ctx context.Context, digest string) (*Image, error) {
	b, err := a.read("manifest.json")
	if err != nil {
		return nil, fmt.Errorf("not an archive of docker save: %w", err)
	}
	var images []dockerImage
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, fmt.Errorf("its manifest.json cannot be read: %w", err)
	}
	f := candidates{digest: digest}
	layers := map[string][]string{}
	known := map[string]string{} // digests by the names of configurations
	for _, image := range images {
		if sum := known[image.Config]; sum != "" {
			f.add(candidate{id: sum}, image.RepoTags...)
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(known) >= maxManifests {
			return nil, fmt.Errorf("it has more than %d images", maxManifests)
		}
		config, sum, err := a.dockerConfig(image.Config)
		if err != nil {
			return nil, err
		}
		rank, fits := rankOf(config.platform())
		switch {
		case fits && rank < 0:
			f.elsewhere(platformText(config.platform()))
			continue
		case digest != "" && sum != digest:
			f.unchosen++
			continue
		}
		known[image.Config], layers[sum] = sum, image.Layers
		c := candidate{digest: sum, id: sum, rank: max(0, rank), config: config}
		f.add(c, image.RepoTags...)
	}
	c, err := f.one(HowChosen)
	if err != nil {
		return nil, err
	}
	i := &Image{Digest: c.digest, Config: c.config}
	for _, name := range layers[c.id] {
		l, err := a.layer(name, "")
		if err != nil {
			return nil, err
		}
		i.Layers = append(i.Layers, l)
	}
	return i, nil
}

// dockerImage is an entry of a manifest.json of `docker save`.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerConfig returns a configuration and its digest, which is its name: HEX.json,
// blobs/sha256/HEX, or sha256:HEX from crane.
func (a *Archive) dockerConfig(name string) (*Config, string, error) {
	if name == "" {
		return nil, "", errors.New("its manifest.json names no configuration")
	}
	text, err := a.read(name)
	if err != nil {
		return nil, "", err
	}
	sum := Sum(text)
	hex := strings.TrimPrefix(strings.TrimSuffix(path.Base(name), ".json"), "sha256:")
	if "sha256:"+hex != sum {
		return nil, "", fmt.Errorf("it is damaged: configuration %.100q has the digest %s",
			name, sum)
	}
	config, err := ParseConfig(text)
	return config, sum, err
}
