"""Downloads from Software Heritage and regrouping of The Stack v2, before packing."""
