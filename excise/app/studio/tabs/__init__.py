"""The tabs of the studio, one file each: `tab` adds the components and what they do."""
